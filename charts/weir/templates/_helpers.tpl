{{/*
The name of the broker URL's Service, with which all others begin. The longest that it may be is by the StatefulSet NAME-router: its pods'
label controller-revision-hash, of 63 characters at most, is its name, a dash and up to ten digits.
*/}}
{{- define "weir.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "%q cannot name a Service, which begins with a letter and has lowercase letters, digits and dashes only: set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/* The labels that select one component's pods. Call: (dict "root" $ "component" "router") */}}
{{- define "weir.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* The labels of an object; of two with one name the chart's own count, then the object's. Call: (dict "root" $ "component" "router" "labels" .labels) */}}
{{- define "weir.labels" -}}
{{- $own := include "weir.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "weir" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_") -}}
{{- merge $own (default dict .labels) (default dict .root.Values.commonLabels) | toYaml -}}
{{- end -}}

{{/* The labels and annotations of an object. Call: as weir.labels, with "annotations" .annotations */}}
{{- define "weir.metadata" -}}
labels: {{- include "weir.labels" . | nindent 2 }}
{{- with merge dict (default dict .annotations) (default dict .root.Values.commonAnnotations) }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The labels of a component's pods. */}}
{{- define "weir.podLabels" -}}
{{- $values := index .root.Values .component -}}
{{- merge (include "weir.selector" . | fromYaml) (default dict $values.podLabels) (default dict .root.Values.commonLabels) | toYaml -}}
{{- end -}}

{{/* The annotations of a component's pods. */}}
{{- define "weir.podAnnotations" -}}
{{- $values := index .root.Values .component -}}
{{- merge (dict "kubectl.kubernetes.io/default-container" .component) (default dict $values.podAnnotations) | toYaml -}}
{{- end -}}

{{- define "weir.image" -}}
{{- $image := .Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{- define "weir.serviceAccountName" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "weir.fullname" .root) .component) $account.name -}}
{{- else -}}
{{- /* The account called default is anybody's in the namespace, and routers are known by theirs. */ -}}
{{- required (printf "%s.serviceAccount.name has to be set when %s.serviceAccount.create is false" .component .component) $account.name -}}
{{- end -}}
{{- end -}}

{{/* The components that run, with commas between them. */}}
{{- define "weir.components" -}}
controller,router{{ if .Values.sources.enabled }},sources{{ end }}
{{- end -}}

{{/* What comes before /NAMESPACE/BROKER. */}}
{{- define "weir.brokerUrl" -}}
{{- $tls := .Values.router.tls -}}
{{- if $tls.enabled -}}
https://{{ include "weir.fullname" . }}.{{ .Release.Namespace }}.svc
{{- if ne (int $tls.port) 443 }}:{{ $tls.port }}{{ end -}}
{{- else -}}
{{ include "weir.plainUrl" . }}
{{- end -}}
{{- end -}}

{{/* The same, for plain HTTP. */}}
{{- define "weir.plainUrl" -}}
http://{{ include "weir.fullname" . }}.{{ .Release.Namespace }}.svc
{{- with .Values.router.service.port }}{{ if ne (int .) 80 }}:{{ . }}{{ end }}{{ end -}}
{{- end -}}

{{/* Whether events come in over plain HTTP: empty if not. */}}
{{- define "weir.hasPlain" -}}
{{- if or (not .Values.router.tls.enabled) .Values.router.tls.plainHttp }}true{{ end -}}
{{- end -}}

{{/* The volume with the authority of the ingress certificate, if its Secret has one: without the certificate's key. */}}
{{- define "weir.brokerAuthority" -}}
- name: broker-ca
  secret: {secretName: {{ .Values.router.tls.secretName | quote }}, items: [{key: ca.crt, path: ca.crt}], optional: true}
{{- end -}}

{{/* What the controller does in the namespaces that it looks at. */}}
{{- define "weir.controllerRules" }}
- {apiGroups: [weir.dev], resources: [brokers, sources, triggers, sinks], verbs: [list, watch]}
- {apiGroups: [weir.dev], resources: [brokers/status, sources/status, triggers/status, sinks/status], verbs: [patch]}
- {apiGroups: [""], resources: [services, serviceaccounts], verbs: [list, watch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [weir-broker], verbs: [list, watch, create, patch, delete]}
{{- end -}}

{{/* What weir sources does in the namespaces that it looks at. */}}
{{- define "weir.sourcesRules" }}
- {apiGroups: [weir.dev], resources: [sources], verbs: [list, watch]}
- {apiGroups: [weir.dev], resources: [sources/status], verbs: [patch]}
{{- end -}}

{{/* A component's pod, but for its containers. */}}
{{- define "weir.pod" -}}
{{- $values := index .root.Values .component -}}
serviceAccountName: {{ include "weir.serviceAccountName" . | quote }}
enableServiceLinks: false # their variables begin with WEIR_ as well
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $own := dict "matchLabels" (include "weir.selector" . | fromYaml) }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
{{- range . }}
- {{- merge (dict "labelSelector" (default $own .labelSelector)) . | toYaml | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A component's container, but for its ports and volumes. */}}
{{- define "weir.container" -}}
{{- $values := index .root.Values .component -}}
name: {{ .component }}
image: {{ include "weir.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{- toYaml .root.Values.securityContext | nindent 2 }}
resources: {{- toYaml $values.resources | nindent 2 }}
{{- $router := eq .component "router" }}
{{- $tracing := and $router .root.Values.tracing.endpoint }}
{{- if or $router $values.extraEnv }}
env:
  {{- if $router }}
  - {name: WEIR_DATA, value: /var/lib/weir/data} # also for the commands that are run in the pod
  {{- end }}
  {{- if $tracing }}
  {{- include "weir.tracing" .root.Values.tracing | nindent 2 }}
  {{- end }}
  {{- with $values.extraEnv }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- with $values.extraEnvFrom }}
envFrom: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $probe, $path := dict "startupProbe" "/healthz" "livenessProbe" "/healthz" "readinessProbe" "/readyz" }}
{{ $probe }}:
  httpGet: {path: {{ $path }}, port: admin}
  {{- with (index $values $probe) }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end -}}

{{/* The environment of a container that exports traces. */}}
{{- define "weir.tracing" -}}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: {{ .sampler | quote }}}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .samplerArg | quote }}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: OTEL_RESOURCE_ATTRIBUTES, value: "k8s.namespace.name=$(POD_NAMESPACE),k8s.pod.name=$(POD_NAME)"}
{{- end -}}

{{/* How the pods of a ServiceMonitor or PodMonitor are scraped. Call: with its values */}}
{{- define "weir.scrape" -}}
port: admin
path: /metrics
interval: {{ .interval | quote }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . | quote }}
{{- end }}
honorLabels: true
{{- with .relabelings }}
relabelings: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A router's flags for NATS. Call: with log.jetstream */}}
{{- define "weir.nats" -}}
- --log=jetstream
- {{ printf "--nats=%s" (join "," .urls) | quote }}
- --nats-replicas={{ .replicas }}
- --nats-stream-size={{ .streamSize }}
- --nats-dead-letter-stream-size={{ .deadLetterStreamSize }}
- --nats-partitions={{ .partitions }}
{{- if (.credentialsSecret).name }}
- --nats-credentials=/var/run/weir/nats/credentials
{{- end }}
{{- if (.caConfigMap).name }}
- --nats-ca=/var/run/weir/nats/ca.crt
{{- end }}
{{- if (.certificateSecret).name }}
- --nats-certificate=/var/run/weir/nats/tls.crt
- --nats-key=/var/run/weir/nats/tls.key
{{- end }}
{{- end -}}

{{/* The files that these flags name. Call: with log.jetstream */}}
{{- define "weir.natsFiles" -}}
{{- with .credentialsSecret }}{{ if .name }}
- secret: {name: {{ .name | quote }}, items: [{key: {{ .key | quote }}, path: credentials}]}
{{- end }}{{ end }}
{{- with .caConfigMap }}{{ if .name }}
- configMap: {name: {{ .name | quote }}, items: [{key: {{ .key | quote }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- with .certificateSecret }}{{ if .name }}
- secret: {name: {{ .name | quote }}, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
{{- end }}{{ end }}
{{- end -}}

{{/* The number of bytes of a size, such as 1GiB. Call: with the size */}}
{{- define "weir.bytes" -}}
{{- $unit := regexFind "[A-Za-z]*$" . | lower | trimSuffix "b" -}}
{{- $factors := dict "" 1 "k" 1000 "m" 1000000 "g" 1000000000 "t" 1000000000000 "ki" 1024 "mi" 1048576 "gi" 1073741824 "ti" 1099511627776 -}}
{{- mul (regexFind "^[0-9]+" . | int64) (index $factors $unit | int64) -}}
{{- end -}}

{{/* Fails unless a stream is larger than what is retained in it: only what exceeds that is removed. Call: with .Values */}}
{{- define "weir.checkStreams" -}}
{{- range $stream, $retained := dict "streamSize" "retentionSize" "deadLetterStreamSize" "deadLetterSize" -}}
{{- if le (include "weir.bytes" (index $.log.jetstream $stream) | int64) (include "weir.bytes" (index $.router $retained) | int64) -}}
{{- fail (printf "log.jetstream.%s must be larger than router.%s, or retained events fill the stream" $stream $retained) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* An Ingress to a Service of the routers. Call: with root, values (those of ingress), name of the Service and port, the name of its port */}}
{{- define "weir.ingress" -}}
{{- $me := dict "root" .root "component" "router" -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ .name | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
  {{- include "weir.metadata" (merge (dict "annotations" .values.annotations) $me) | nindent 2 }}
spec:
  {{- with .values.className }}
  ingressClassName: {{ . | quote }}
  {{- end }}
  {{- with .values.tls }}
  tls: {{- toYaml . | nindent 2 }}
  {{- end }}
  rules:
  {{- range .values.hosts }}
  - host: {{ .host | quote }}
    http:
      paths:
      {{- range default (list dict) .paths }}
      - path: {{ default "/" .path | quote }}
        pathType: {{ default "Prefix" .pathType }}
        backend: {service: {name: {{ $.name | quote }}, port: {name: {{ $.port }}}}}
      {{- end }}
  {{- end }}
{{- end -}}

{{/* An HTTPRoute to a Service of the routers. Call: with root, values (those of httpRoute), name of the Service and port, the number of its port */}}
{{- define "weir.httpRoute" -}}
{{- $me := dict "root" .root "component" "router" -}}
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {{ .name | quote }}
  namespace: {{ .root.Release.Namespace | quote }}
  {{- include "weir.metadata" (merge (dict "annotations" .values.annotations) $me) | nindent 2 }}
spec:
  parentRefs: {{- toYaml .values.parentRefs | nindent 2 }}
  {{- with .values.hostnames }}
  hostnames: {{- toYaml . | nindent 2 }}
  {{- end }}
  rules:
  {{- range .values.rules }}
  - matches: {{- toYaml .matches | nindent 4 }}
    {{- with .filters }}
    filters: {{- toYaml . | nindent 4 }}
    {{- end }}
    backendRefs: [{name: {{ $.name | quote }}, port: {{ $.port }}}]
  {{- end }}
{{- end -}}
