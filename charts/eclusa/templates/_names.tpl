{{/* There is one eclusa in a cluster, so its names do not depend on the release. */}}
{{- define "eclusa.ccm" -}}eclusa-cloud-controller-manager{{- end }}

{{- define "eclusa.edge" -}}eclusa-edge{{- end }}

{{/* Call these with (dict "root" $ "component" NAME). */}}
{{- define "eclusa.selector" -}}
app.kubernetes.io/name: eclusa
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "eclusa.labels" -}}
{{ include "eclusa.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Call it with (dict "root" $ "image" VALUES). */}}
{{- define "eclusa.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default (.root.Chart.AppVersion | replace "+" "_") }}
{{- end -}}
{{- end }}

{{- define "eclusa.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "eclusa.ccm" .) }}
{{- end }}

{{/* The flags with which kubectl eclusa finds the leader, where they are not its defaults. */}}
{{- define "eclusa.kubectlFlags" -}}
{{- if ne .Release.Namespace "kube-system" }} --lease-namespace {{ .Release.Namespace }}{{ end }}
{{- if ne (include "eclusa.serviceAccount" .) (include "eclusa.ccm" .) }} --manager-service-account {{ include "eclusa.serviceAccount" . }}{{ end }}
{{- end }}

{{/* The Secret with the certificate of this cluster. */}}
{{- define "eclusa.clientSecret" -}}
{{- if .Values.clientCertificate.certificate -}}
{{ include "eclusa.ccm" . }}-client
{{- else -}}
{{ .Values.clientCertificate.existingSecret | default "eclusa-client" }}
{{- end -}}
{{- end }}

{{/* The configuration of eclusa-cloud-controller-manager. */}}
{{- define "eclusa.cloudConfig" -}}
{{- with .Values.clusterName -}}
clusterName: {{ . | quote }}
{{ end -}}
client:
  certFile: /etc/eclusa/client/tls.crt
  keyFile: /etc/eclusa/client/tls.key
  caFile: /etc/eclusa/client/ca.crt
nodeAddressTypes:
  {{- toYaml .Values.nodeAddressTypes | nindent 2 }}
{{- if .Values.drainCordonedNodes }}
drainCordonedNodes: true
{{- end }}
{{- with .Values.nodePortRange }}
nodePortRange: {{ . }}
{{- end }}
{{- end }}

{{/* Address and port of a listener. Call it with (list ADDRESS PORT). */}}
{{- define "eclusa.hostPort" -}}
{{- $address := index . 0 -}}
{{- if contains ":" $address -}}
[{{ $address }}]:{{ index . 1 }}
{{- else -}}
{{ $address }}:{{ index . 1 }}
{{- end -}}
{{- end }}

{{/* The configuration of one edge. Call it with (dict "root" $ "node" NAME "address" ADDRESS). */}}
{{- define "eclusa.edgeConfig" -}}
{{- $edge := .root.Values.edge -}}
{{- $management := ternary .address "127.0.0.1" $edge.exposeMetrics -}}
{{- $own := dict
  "name" .node
  "stateDir" $edge.stateDir
  "drainTimeout" (printf "%ds" (int $edge.drainSeconds))
  "api" (dict
    "listen" (include "eclusa.hostPort" (list .address (int $edge.apiPort)))
    "certFile" (printf "/etc/eclusa/pki/%s.crt" .node)
    "keyFile" (printf "/etc/eclusa/pki/%s.key" .node)
    "clientCAFile" "/etc/eclusa/pki/ca.crt")
  "management" (dict "listen" (include "eclusa.hostPort" (list $management (int $edge.managementPort))))
-}}
{{- with (index $edge.nodes .node).sourceAddresses }}
{{- $_ := set $own "nftables" (dict "sourceAddresses" .) }}
{{- end }}
{{ toYaml (mergeOverwrite (deepCopy $edge.config) $own) }}
{{- end }}
