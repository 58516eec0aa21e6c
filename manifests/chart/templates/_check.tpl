{{/* What `penstock check` refuses between settings, and what only a cluster makes a mistake. The schema has looked at
     each setting by itself. Every problem is said at once. */}}
{{- define "penstock.problems" -}}
{{- $problems := list -}}
{{- if and (not .Values.stores) (not .Values.kubernetes.dependencies.bundled) -}}
{{- $problems = append $problems "stores: missing; a cluster keeps its state in Redis, PostgreSQL and RabbitMQ: name them under `stores`, or try it with `--set kubernetes.dependencies.bundled=true`" -}}
{{- end -}}
{{- if and .Values.stores .Values.kubernetes.dependencies.bundled -}}
{{- $problems = append $problems "kubernetes.dependencies.bundled: found beside `stores`; remove one of the two" -}}
{{- end -}}
{{- if and (not .Values.kubernetes.dependencies.bundled) (not (.Values.auth).pepper) -}}
{{- $problems = append $problems "auth.pepper: missing; write `auth: {pepper: {secret: NAME, key: KEY}}`" -}}
{{- end -}}
{{- if not .Values.models -}}
{{- $problems = append $problems "models: missing, wanted at least one model" -}}
{{- end -}}
{{- range $model, $with := include "penstock.models" . | fromJson -}}
{{- $at := printf "models.%s" $model -}}
{{- if and (not $with.upstream) (not $with.deploy) -}}
{{- $problems = append $problems (printf "%s.upstream: missing; write `upstream: URL`, or `deploy:` for the chart to run its server" $at) -}}
{{- end -}}
{{- range $pods := list "replicas" "workers" -}}
{{- $bounds := get $with $pods -}}
{{- $least := include "penstock.amount" $bounds.min | int64 -}}
{{- $most := include "penstock.amount" $bounds.max | int64 -}}
{{- if gt $least $most -}}
{{- $problems = append $problems (printf "%s.%s.min: %d is more than max (%d); lower it" $at $pods $least $most) -}}
{{- end -}}
{{- end -}}
{{- if and (hasKey (get $.Values.models $model) "deploy") $with.scale_target -}}
{{- $problems = append $problems (printf "%s.scale_target: found beside `deploy`, whose server is scaled already; remove one of the two" $at) -}}
{{- end -}}
{{- if $with.capacity -}}
{{- $drain := include "penstock.seconds" $with.objective.drain | int64 -}}
{{- $cold := include "penstock.seconds" $with.capacity.cold_start | int64 -}}
{{- $speed := divf (include "penstock.amount" $with.capacity.tokens_per_second | float64) (include "penstock.amount" $with.capacity.concurrency | float64) -}}
{{- $output := divf (include "penstock.amount" $with.max_tokens | float64) $speed -}}
{{- if gt $output (float64 $drain) -}}
{{- $problems = append $problems (printf "%s.objective.drain: %v can be met by no number of replicas: one output of max_tokens (%v) alone takes %.0f s at capacity; raise it" $at $with.objective.drain $with.max_tokens $output) -}}
{{- else if and (eq (include "penstock.amount" $with.replicas.min | int64) 0) (ge $cold $drain) -}}
{{- $problems = append $problems (printf "%s.objective.drain: %v can be met by no number of replicas: a replica needs %v to start (capacity.cold_start), from none at all; raise it, or keep one replica: `replicas: {min: 1}`" $at $with.objective.drain $with.capacity.cold_start) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $problems = concat $problems (include "penstock.unfollowed" (dict "at" "auth" "found" (.Values.auth | default dict)) | fromJsonArray) -}}
{{- $problems = concat $problems (include "penstock.unfollowed" (dict "at" "stores" "found" (.Values.stores | default dict)) | fromJsonArray) -}}
{{- $problems = concat $problems (include "penstock.unfollowed" (dict "at" "models" "found" (.Values.models | default dict)) | fromJsonArray) -}}
{{- if $problems -}}
{{- fail (printf "\n\n%d problem(s) in the values:\n\n  - %s\n\nSee docs/reference/configuration.md, and `penstock check`.\n" (len $problems) (join "\n  - " $problems)) -}}
{{- end -}}
{{- end -}}

{{/* References that lead nowhere in a pod: variables and files of the machine that the file was written on. */}}
{{- define "penstock.unfollowed" -}}
{{- $problems := list -}}
{{- range $key, $below := .found -}}
{{- $at := printf "%s.%s" $.at $key -}}
{{- if kindIs "map" $below -}}
{{- if and (kindIs "string" $below.env) (eq (len $below) 1) (ne $key "environment") -}}
{{- $problems = append $problems (printf "%s: found the environment variable %s, which no pod has; write `{secret: NAME, key: KEY}`" $at $below.env) -}}
{{- else if and (kindIs "string" $below.file) (eq (len $below) 1) -}}
{{- $problems = append $problems (printf "%s: found the file %s, which no pod has; write `{secret: NAME, key: KEY}`" $at $below.file) -}}
{{- else -}}
{{- $problems = concat $problems (include "penstock.unfollowed" (dict "at" $at "found" $below) | fromJsonArray) -}}
{{- end -}}
{{- else if kindIs "slice" $below -}}
{{- range $index, $each := $below -}}
{{- if kindIs "map" $each -}}
{{- $problems = concat $problems (include "penstock.unfollowed" (dict "at" (printf "%s[%d]" $at $index) "found" $each) | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end -}}
