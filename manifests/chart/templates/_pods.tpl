{{/* What every pod of Penstock has in common: no rights, no root, nothing to write on but what is named. */}}

{{- define "penstock.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The first lines of a pod's spec. Keys: root, component, settings (a Component). */}}
{{- define "penstock.podHead" -}}
automountServiceAccountToken: false
enableServiceLinks: false
serviceAccountName: {{ include "penstock.name" .root }}
securityContext: {{- include "penstock.podSecurity" . | nindent 2 }}
{{- with .root.Values.kubernetes.images.pull_secrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with .settings.node_selector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.priority_class }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "penstock.selector" $ | nindent 8 }}
{{- with $.model }}
        penstock.dev/model: {{ include "penstock.dns" . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A container of the Python image. Keys: root. */}}
{{- define "penstock.python" -}}
image: {{ include "penstock.image" (dict "root" .root "image" .root.Values.kubernetes.images.penstock) }}
imagePullPolicy: {{ .root.Values.kubernetes.images.pull_policy }}
securityContext: {{- include "penstock.containerSecurity" . | nindent 2 }}
{{- end -}}

{{- define "penstock.bento" -}}
image: {{ include "penstock.image" (dict "root" .root "image" .root.Values.kubernetes.images.bento) }}
imagePullPolicy: {{ .root.Values.kubernetes.images.pull_policy }}
securityContext: {{- include "penstock.containerSecurity" . | nindent 2 }}
{{- end -}}

{{/* Every process is given the same two files, the second one wins. */}}
{{- define "penstock.configurationArguments" -}}
- -c
- /etc/penstock/penstock.yaml
- -c
- /etc/penstock/cluster.yaml
{{- end -}}

{{- define "penstock.configurationMounts" -}}
- {name: configuration, mountPath: /etc/penstock, readOnly: true}
- {name: secrets, mountPath: /run/penstock/secrets, readOnly: true}
{{- end -}}

{{/* Keys: root, component, model (of a worker), file (the ConfigMap's last word). */}}
{{- define "penstock.configurationVolumes" -}}
- name: configuration
  configMap: {name: {{ include "penstock.name" .root }}-{{ .file | default .component }}}
{{ include "penstock.secretsVolume" . }}
{{- end -}}

{{/* Waits until `penstock setup` is done with the version of the configuration that its ConfigMap names, since a version
     among the arguments would start every pod anew with any change; for a stream of Bento it then writes
     the environment, with the Secrets in it, into memory. Keys: root, component, stream. */}}
{{- define "penstock.await" -}}
- name: await-setup
  {{- include "penstock.python" . | nindent 2 }}
  args:
    - await
    - "@/etc/penstock/version"
    - --role
    - {{ .component }}
{{- with .stream }}
    - --stream
    - {{ . | quote }}
    - --environment
    - /run/penstock/stream/environment
{{- end }}
    {{- include "penstock.configurationArguments" . | nindent 4 }}
  resources: {requests: {cpu: 50m, memory: 128Mi}, limits: {memory: 256Mi}}
  volumeMounts:
    {{- include "penstock.configurationMounts" . | nindent 4 }}
{{- if .stream }}
    - {name: stream, mountPath: /run/penstock/stream}
{{- end }}
{{- end -}}

{{/* A stream of Bento. Keys: root, stream (its file), port (operations), settings, drain (seconds), exposes. */}}
{{- define "penstock.streamContainer" -}}
- name: bento
  {{- include "penstock.bento" . | nindent 2 }}
  command: [/bento]
  args:
    - --env-file
    - /run/penstock/stream/environment
    - --templates
    - /etc/penstock/bento/templates/*.yaml
    - --resources
    - /etc/penstock/bento/resources/*.yaml
    - --config
    - /etc/penstock/bento/{{ .file }}.yaml
  ports:
    - {name: operations, containerPort: {{ .port }}}
{{- range $name, $number := .exposes }}
    - {name: {{ $name }}, containerPort: {{ $number }}}
{{- end }}
  startupProbe: {httpGet: {path: /ping, port: operations}, periodSeconds: 2, failureThreshold: 60}
  livenessProbe: {httpGet: {path: /ping, port: operations}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
  readinessProbe: {httpGet: {path: /ready, port: operations}, periodSeconds: 5, timeoutSeconds: 5}
{{- if .drain }}
  lifecycle: {preStop: {sleep: {seconds: {{ .drain }}}}}
{{- end }}
  resources: {{- toYaml .settings.resources | nindent 4 }}
  volumeMounts:
    - {name: stream, mountPath: /run/penstock/stream, readOnly: true}
{{- if include "penstock.streamTls" . | fromJsonArray }}
    - {name: tls, mountPath: /run/penstock/secrets, readOnly: true}
{{- end }}
{{- end -}}

{{/* Of a pod with a stream: its environment, and the files of TLS. Keys: root, component, model (of a worker). */}}
{{- define "penstock.streamVolume" -}}
- name: stream
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- with include "penstock.streamTls" . | fromJsonArray }}
{{ include "penstock.projected" (dict "name" "tls" "references" .) }}
{{- end }}
{{- end -}}

{{/* A rolling change that never has fewer pods than are wanted. */}}
{{- define "penstock.strategy" -}}
type: RollingUpdate
rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
{{- end -}}

{{/* Annotations of a pod: a digest of what it reads, so that a change of it, and of nothing else, starts it anew. */}}
{{- define "penstock.annotations" -}}
penstock.dev/configuration: {{ printf "%s\n%s" (include "penstock.configuration" .) (include "penstock.addresses" .) | sha256sum | trunc 16 | quote }}
{{- with .settings.annotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "penstock.budget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "penstock.name" .root }}-{{ .file | default .component }}
  labels: {{- include "penstock.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "penstock.selector" . | nindent 6 }}
{{- with .model }}
      penstock.dev/model: {{ include "penstock.dns" . }}
{{- end }}
{{- end -}}
