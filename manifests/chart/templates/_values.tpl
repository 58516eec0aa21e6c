{{/* What is computed from the values: names, durations, and models with their defaults. */}}

{{- define "penstock.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* A name that may be part of an object's name, from any model's name; two models never share one. */}}
{{- define "penstock.dns" -}}
{{- $spelt := regexReplaceAll "[^a-z0-9-]+" (lower .) "-" | trimAll "-" -}}
{{- if and (eq $spelt .) (le (len .) 30) -}}
{{- $spelt -}}
{{- else -}}
{{- printf "%s-%s" ($spelt | trunc 24 | trimAll "-") (sha256sum . | trunc 5) -}}
{{- end -}}
{{- end -}}

{{/* Whole seconds of a duration as penstock.yaml writes it, rounded up. */}}
{{- define "penstock.seconds" -}}
{{- $text := . | toString | replace "_" "" -}}
{{- $number := regexFind "^[0-9.]+" $text | float64 -}}
{{- $unit := regexFind "[a-z]+$" $text -}}
{{- $each := get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0) $unit -}}
{{- mulf $number $each | ceil | int64 -}}
{{- end -}}

{{/* A whole number of an amount as penstock.yaml writes it: 64, "8k", "1.5M". */}}
{{- define "penstock.amount" -}}
{{- if kindIs "string" . -}}
{{- $text := replace "_" "" . -}}
{{- $number := regexFind "^[0-9.]+" $text | float64 -}}
{{- $suffix := regexFind "[kMB]$" $text -}}
{{- mulf $number (get (dict "" 1.0 "k" 1000.0 "M" 1000000.0 "B" 1000000000.0) $suffix) | int64 -}}
{{- else -}}
{{- int64 . -}}
{{- end -}}
{{- end -}}

{{/* Every model with the defaults of what it leaves out, by its name, as JSON. */}}
{{- define "penstock.models" -}}
{{- $defaults := .Files.Get "files/defaults.yaml" | fromYaml -}}
{{- $models := dict -}}
{{- range $name, $given := .Values.models -}}
{{- $model := mergeOverwrite (deepCopy $defaults.model) (deepCopy $given) -}}
{{- if $model.capacity -}}
{{- $_ := set $model "capacity" (mergeOverwrite (deepCopy $defaults.capacity) $model.capacity) -}}
{{- end -}}
{{- if eq (toString $model.upstream) "local" -}}
{{- $image := include "penstock.image" (dict "root" $ "image" $.Values.kubernetes.images.local) -}}
{{- $args := list "local-model" "--host" "0.0.0.0" "--port" "8000" "--model" ($model.upstream_model | default $name) "--context" (include "penstock.amount" $model.context) -}}
{{- $_ := set $model "deploy" (dict "image" $image "args" $args "startup" "3m" "resources" (dict "requests" (dict "cpu" "1" "memory" "512Mi") "limits" (dict "memory" "2Gi"))) -}}
{{- end -}}
{{- if $model.deploy -}}
{{- $deploy := mergeOverwrite (deepCopy $defaults.deploy) $model.deploy -}}
{{- if $deploy.cache -}}
{{- $_ := set $deploy "cache" (mergeOverwrite (deepCopy $defaults.cache) $deploy.cache) -}}
{{- end -}}
{{- $_ := set $model "deploy" $deploy -}}
{{- end -}}
{{- $_ := set $models $name $model -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{- define "penstock.image" -}}
{{- $tag := .image.tag | default .root.Chart.AppVersion -}}
{{- if hasPrefix "sha256:" $tag -}}
{{- printf "%s@%s" .image.repository $tag -}}
{{- else -}}
{{- printf "%s:%s" .image.repository $tag -}}
{{- end -}}
{{- end -}}

{{/* The queues of a model, as RabbitMQ names them, without the shard; the same spelling as in Python and Bento. */}}
{{- define "penstock.queue" -}}
{{- printf "jobs.%s.standard" (. | replace ":" "_3a" | replace "/" "_2f" | replace "@" "_40" | replace "+" "_2b") -}}
{{- end -}}

{{- define "penstock.labels" -}}
app.kubernetes.io/name: penstock
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/component: {{ .component }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "penstock.selector" -}}
app.kubernetes.io/name: penstock
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Seconds that a job may take from being taken to its result, with room for the executor to end it by itself. */}}
{{- define "penstock.execute" -}}
{{- add (include "penstock.seconds" .Values.queue.deadline) 300 -}}
{{- end -}}

{{/* The port of a URL, by its scheme where it says none. */}}
{{- define "penstock.port" -}}
{{- $parts := urlParse . -}}
{{- $said := regexFind ":[0-9]+$" $parts.host | trimPrefix ":" -}}
{{- $said | default (get (dict "http" "80" "https" "443" "redis" "6379" "rediss" "6379" "postgresql" "5432" "amqp" "5672" "amqps" "5671") $parts.scheme) -}}
{{- end -}}
