{{/* What each kind of process reads: its part of penstock.yaml, so that a change rolls only what reads it, and the
     addresses of the cluster in a second file that wins. */}}

{{/* The parts of the configuration that a component reads, as YAML. Keys: root, component, model (of a worker). */}}
{{- define "penstock.configuration" -}}
{{- $values := .root.Values -}}
{{- $parts := dict -}}
{{- if $values.stores -}}{{- $_ := set $parts "stores" $values.stores -}}{{- end -}}
{{- if has .component (list "setup" "api" "gateway" "keeper") -}}
{{- range $key := list "models" "auth" "queue" -}}
{{- if hasKey $values $key -}}{{- $_ := set $parts $key (get $values $key) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if has .component (list "api" "worker") -}}{{- $_ := set $parts "server" $values.server -}}{{- end -}}
{{- if eq .component "worker" -}}
{{- $_ := set $parts "queue" $values.queue -}}
{{- $_ := set $parts "models" (dict .model (get $values.models .model)) -}}
{{- end -}}
{{- if eq .component "collector" -}}
{{- $models := dict -}}
{{- range $name, $model := $values.models -}}
{{- $_ := set $models $name (dict "upstream" "http://unused" "context" $model.context "max_tokens" 1) -}}
{{- end -}}
{{- $_ := set $parts "models" $models -}}
{{- end -}}
{{- if and ($values.tracing).endpoint (ne .component "setup") -}}{{- $_ := set $parts "tracing" $values.tracing -}}{{- end -}}
{{- if eq .component "setup" -}}
{{- range $key := list "plans" "organisations" -}}
{{- if hasKey $values $key -}}{{- $_ := set $parts $key (get $values $key) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $parts -}}
{{- end -}}

{{/* Addresses that only the chart knows, as YAML. */}}
{{- define "penstock.addresses" -}}
{{- $name := include "penstock.name" .root -}}
{{- $found := dict "server" (dict "host" "0.0.0.0" "operations_host" "0.0.0.0" "data_directory" "/var/lib/penstock") -}}
{{- $_ := set $found "queue" (dict "gateway" (printf "http://%s-gateway:4195" $name)) -}}
{{- $models := dict -}}
{{- range $model, $settings := include "penstock.models" .root | fromJson -}}
{{- if and $settings.deploy (or (not $.model) (eq $.model $model)) (ne $.component "collector") -}}
{{- $_ := set $models $model (dict "upstream" (printf "http://%s-model-%s:%v" $name (include "penstock.dns" $model) $settings.deploy.port)) -}}
{{- end -}}
{{- end -}}
{{- if $models -}}{{- $_ := set $found "models" $models -}}{{- end -}}
{{- if .root.Values.kubernetes.dependencies.bundled -}}
{{- $secret := include "penstock.bundledSecret" .root -}}
{{- $redis := dict "url" (printf "redis://%s-redis:6379" $name) "username" "default" "password" (dict "secret" $secret "key" "redis") -}}
{{- $postgresql := dict "url" (printf "postgresql://%s-postgresql:5432/penstock" $name) "username" "penstock" "password" (dict "secret" $secret "key" "postgresql") -}}
{{- $rabbitmq := dict "url" (printf "amqp://%s-rabbitmq:5672/penstock" $name) "management" (printf "http://%s-rabbitmq:15672" $name) "username" "penstock" "password" (dict "secret" $secret "key" "rabbitmq") -}}
{{- $_ := set $found "stores" (dict "redis" $redis "postgresql" $postgresql "rabbitmq" $rabbitmq) -}}
{{- if and (has .component (list "setup" "api" "gateway" "keeper")) (not (.root.Values.auth).pepper) -}}
{{- $_ := set $found "auth" (dict "pepper" (dict "secret" $secret "key" "pepper")) -}}
{{- end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}

{{- define "penstock.bundledSecret" -}}
{{- .Values.kubernetes.dependencies.secret | default (printf "%s-bundled" (include "penstock.name" .)) -}}
{{- end -}}

{{/* References to Secrets in a piece of configuration: [{"secret": S, "key": K}, ...] as JSON; others are left out. */}}
{{- define "penstock.references" -}}
{{- $found := list -}}
{{- if kindIs "map" . -}}
{{- if and (kindIs "string" .secret) (kindIs "string" .key) -}}
{{- $found = append $found (dict "secret" .secret "key" .key) -}}
{{- else -}}
{{- range $name, $below := . -}}{{- $found = concat $found (include "penstock.references" $below | fromJsonArray) -}}{{- end -}}
{{- end -}}
{{- else if kindIs "slice" . -}}
{{- range . -}}{{- $found = concat $found (include "penstock.references" . | fromJsonArray) -}}{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* Only what a component follows: of the stores' accounts its own, and the common one where it has none. */}}
{{- define "penstock.followed" -}}
{{- $configuration := mergeOverwrite (include "penstock.configuration" . | fromYaml) (include "penstock.addresses" . | fromYaml) -}}
{{- $account := get (dict "api" "api" "keeper" "keeper" "gateway" "gateway" "worker" "worker" "collector" "collector") .component -}}
{{- range $service, $store := $configuration.stores | default dict -}}
{{- $used := has $service (get (dict "setup" (list "redis" "postgresql" "rabbitmq") "api" (list "redis" "postgresql") "keeper" (list "redis" "postgresql" "rabbitmq") "gateway" (list "redis" "rabbitmq") "worker" (list "redis" "rabbitmq") "collector" (list "redis" "postgresql" "rabbitmq")) $.component) -}}
{{- if not $used -}}
{{- $_ := unset $configuration.stores $service -}}
{{- else if $account -}}
{{- $mine := ternary "monitor" $account (and (eq $account "keeper") (eq $service "rabbitmq")) -}}
{{- $own := get ($store.accounts | default dict) $mine -}}
{{- if $own -}}{{- $_ := unset $store "password" -}}{{- $_ := set $store "accounts" (dict $mine $own) -}}
{{- else -}}{{- $_ := unset $store "accounts" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (has .component (list "setup" "api" "gateway")) -}}{{- $_ := unset $configuration "auth" -}}{{- end -}}
{{- if has .component (list "setup" "gateway" "keeper" "collector") -}}{{- $_ := unset $configuration "models" -}}{{- end -}}
{{- range $name, $model := $configuration.models | default dict -}}{{- $_ := unset $model "deploy" -}}{{- end -}}
{{- include "penstock.references" $configuration -}}
{{- end -}}

{{/* A volume of keys of Secrets, each at NAME/KEY. Keys: name, references (as penstock.references finds them). */}}
{{- define "penstock.projected" -}}
{{- $keys := dict -}}
{{- range $each := .references -}}
{{- $_ := set $keys $each.secret (append (get $keys $each.secret | default list) $each.key | uniq | sortAlpha) -}}
{{- end -}}
- name: {{ .name }}
  projected:
    defaultMode: 0440
    sources:
{{- range $secret, $names := $keys }}
      - secret:
          name: {{ $secret }}
          items:
{{- range $names }}
            - {key: {{ . | quote }}, path: {{ printf "%s/%s" $secret . | quote }}}
{{- end }}
{{- end }}
{{- if not $keys }} []{{- end }}
{{- end -}}

{{/* The volume of a component's Secrets: /run/penstock/secrets/NAME/KEY, and nothing that it does not follow. */}}
{{- define "penstock.secretsVolume" -}}
{{- include "penstock.projected" (dict "name" "secrets" "references" (include "penstock.followed" . | fromJsonArray)) -}}
{{- end -}}

{{/* The files by which a stream of Bento proves servers, and itself to them: as JSON, like the references they are. */}}
{{- define "penstock.streamTls" -}}
{{- $found := list -}}
{{- $stores := ((mergeOverwrite (include "penstock.configuration" . | fromYaml) (include "penstock.addresses" . | fromYaml)).stores) | default dict -}}
{{- range $service, $store := $stores -}}
{{- if or (ne $service "postgresql") (eq $.component "collector") -}}
{{- range $part := list "ca" "certificate" "key" -}}
{{- $found = concat $found (include "penstock.references" (get $store $part) | fromJsonArray) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson ($found | uniq) -}}
{{- end -}}

{{/* The version of a configuration: the setup Job is named by it, and pods wait for it. */}}
{{- define "penstock.version" -}}
{{- $read := include "penstock.configuration" (dict "root" . "component" "setup") -}}
{{- $addresses := include "penstock.addresses" (dict "root" . "component" "setup") -}}
{{- printf "%s\n%s\n%s" $read $addresses (include "penstock.image" (dict "root" . "image" .Values.kubernetes.images.penstock)) | sha256sum | trunc 10 -}}
{{- end -}}
