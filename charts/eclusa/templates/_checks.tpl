{{/*
What a schema cannot say: values that contradict each other, and what the cluster
lacks. What needs the cluster is only checked when there is one, which `helm
template` has not.
*/}}
{{- define "eclusa.checks" -}}
{{- include "eclusa.checkCertificate" . }}
{{- include "eclusa.checkArguments" . }}
{{- include "eclusa.checkEdges" . }}
{{- include "eclusa.checkMonitoring" . }}
{{- include "eclusa.checkRelease" . }}
{{- include "eclusa.checkDefinitions" . }}
{{- end }}

{{- define "eclusa.checkCertificate" -}}
{{- $c := .Values.clientCertificate }}
{{- if and $c.existingSecret (or $c.certificate $c.key $c.ca) }}
{{- fail (printf "\n\nclientCertificate.existingSecret: %q is named, and a certificate is given too: leave out one or the other" $c.existingSecret) }}
{{- end }}
{{- if or $c.certificate $c.key $c.ca }}
{{- range $key := list "certificate" "key" "ca" }}
{{- if not (index $c $key) }}
{{- fail (printf "\n\nclientCertificate.%s: is missing: certificate, key and ca belong together (or name a Secret in clientCertificate.existingSecret)" $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "eclusa.checkArguments" -}}
{{- $keys := dict
  "--cloud-provider" "it is always eclusa"
  "--cloud-config" "set clusterName, nodeAddressTypes, drainCordonedNodes, nodePortRange and clientCertificate"
  "--cluster-name" "set clusterName"
  "--controllers" "set serveServicesWithoutClass"
  "--leader-elect-resource-namespace" "the Lease is in the release's namespace"
  "--leader-elect-resource-name" "the Lease has the name for which there are rights"
  "--bind-address" "set controllerManager.bindAddress"
  "--secure-port" "probes and Services count on 10258"
  "--tls-cert-file" "set controllerManager.servingCertificate"
  "--tls-private-key-file" "set controllerManager.servingCertificate"
  "--log-level" "set controllerManager.logLevel"
  "--log-format" "set controllerManager.logFormat" }}
{{- range $arg := .Values.controllerManager.extraArgs }}
{{- $flag := regexFind "^--[^=]+" $arg }}
{{- if hasKey $keys $flag }}
{{- fail (printf "\n\ncontrollerManager.extraArgs: %q: is the chart's to set: %s" $arg (get $keys $flag)) }}
{{- end }}
{{- end }}
{{- $serving := .Values.controllerManager.servingCertificate }}
{{- if and $serving.serverName (not $serving.existingSecret) }}
{{- fail (printf "\n\ncontrollerManager.servingCertificate.serverName: %q: has no meaning without existingSecret: name the Secret with the certificate, or remove it" $serving.serverName) }}
{{- end }}
{{- end }}

{{- define "eclusa.checkEdges" -}}
{{- $edge := .Values.edge }}
{{- if $edge.enabled }}
{{- if not $edge.nodes }}
{{- fail "\n\nedge.nodes: is empty: with edge.enabled it must list the Nodes that get an edge, such as {worker-1: {address: 192.0.2.11}}" }}
{{- end }}
{{- if not $edge.config.clusters }}
{{- fail "\n\nedge.config.clusters: is empty: with edge.enabled it must list this cluster at least, such as [{name: prod, addressRanges: [192.0.2.128/25], nodeRanges: [198.51.100.0/24]}]" }}
{{- end }}
{{- $mode := $edge.config.announce.mode }}
{{- if and (eq $mode "interface") (not $edge.config.announce.interface) }}
{{- fail "\n\nedge.config.announce.interface: is missing: mode \"interface\" needs the name of a network interface, such as eth0" }}
{{- end }}
{{- if and (ne $mode "interface") $edge.config.announce.interface }}
{{- fail (printf "\n\nedge.config.announce.interface: %q: has no meaning with mode %q: set mode to \"interface\" or remove it" $edge.config.announce.interface $mode) }}
{{- end }}
{{- if eq (int $edge.apiPort) (int $edge.managementPort) }}
{{- fail (printf "\n\nedge.managementPort: %d is edge.apiPort too: they must differ" (int $edge.apiPort)) }}
{{- end }}
{{- $holders := dict }}
{{- range $name := keys $edge.nodes | sortAlpha }}
{{- if hasKey $.Values.edges $name }}
{{- fail (printf "\n\nedges.%s: is made from edge.nodes.%s already: remove one of them" $name $name) }}
{{- end }}
{{- $node := index $edge.nodes $name }}
{{- $address := $node.address }}
{{- if and $node.sourceAddresses (eq $edge.config.engine "proxy") }}
{{- fail (printf "\n\nedge.nodes.%s.sourceAddresses: have no meaning with edge.config.engine \"proxy\": set it to \"nftables\" or \"auto\", or remove them" $name) }}
{{- end }}
{{- if hasKey $holders $address }}
{{- fail (printf "\n\nedge.nodes.%s.address: %q is the address of %s too" $name $address (get $holders $address)) }}
{{- end }}
{{- $_ := set $holders $address $name }}
{{- end }}
{{- end }}
{{- end }}

{{- define "eclusa.checkMonitoring" -}}
{{- range $kind, $key := dict "ServiceMonitor" "metrics.serviceMonitor.enabled" "PrometheusRule" "alerts.enabled" }}
{{- $enabled := ternary $.Values.metrics.serviceMonitor.enabled $.Values.alerts.enabled (eq $kind "ServiceMonitor") }}
{{- if and $enabled (not ($.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" $kind))) }}
{{- fail (printf "\n\n%s: this cluster has no %ss (monitoring.coreos.com/v1): install the Prometheus operator first, or set it to false. (helm template, which asks no cluster, wants --api-versions monitoring.coreos.com/v1/%s.)" $key $kind $kind) }}
{{- end }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) }}
{{- fail "\n\nmetrics.service.enabled: is false, and metrics.serviceMonitor.enabled needs that Service: enable both or neither" }}
{{- end }}
{{- end }}

{{/* Two would hold two Leases, and fight over the same Services and edges. */}}
{{- define "eclusa.checkRelease" -}}
{{- $role := lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" (include "eclusa.ccm" .) }}
{{- $annotations := dig "metadata" "annotations" dict ($role | default dict) }}
{{- $name := get $annotations "meta.helm.sh/release-name" }}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" }}
{{- if and $name (or (ne $name .Release.Name) (ne $namespace .Release.Namespace)) }}
{{- fail (printf "\n\neclusa is in this cluster already, as release %q in namespace %q: two would fight over the same Services. Upgrade that one (helm upgrade %s --namespace %s ...), or uninstall it first: load balancers go on serving meanwhile." $name $namespace $name $namespace) }}
{{- end }}
{{- end }}

{{/* Helm never upgrades what is in crds/, and the API server drops what it does not know. */}}
{{- define "eclusa.checkDefinitions" -}}
{{- range $path, $_ := .Files.Glob "crds/*.yaml" }}
{{- $want := $.Files.Get $path | fromYaml }}
{{- $have := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" $want.metadata.name }}
{{- if $have }}
{{- range $version := $want.spec.versions }}
{{- $live := dict }}
{{- range $have.spec.versions }}
{{- if eq .name $version.name }}{{ $live = . }}{{ end }}
{{- end }}
{{- $missing := include "eclusa.missing" (dict "want" $version.schema.openAPIV3Schema "have" (dig "schema" "openAPIV3Schema" dict $live) "path" $version.name) | trim }}
{{- if $missing }}
{{- fail (printf "\n\nCustomResourceDefinition %q is older than this chart and lacks %s. Helm does not upgrade it; do it first:\n\n  helm show crds CHART | kubectl apply --server-side --force-conflicts -f -\n" $want.metadata.name ($missing | splitList "\n" | join ", ")) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The properties of one schema that another has not, one a line. */}}
{{- define "eclusa.missing" -}}
{{- $have := .have | default dict }}
{{- range $name, $want := .want.properties | default dict }}
{{- $path := printf "%s.%s" $.path $name }}
{{- if hasKey ($have.properties | default dict) $name }}
{{- include "eclusa.missing" (dict "want" $want "have" (index $have.properties $name) "path" $path) }}
{{- else }}
{{ $path }}
{{- end }}
{{- end }}
{{- if .want.items }}
{{- include "eclusa.missing" (dict "want" .want.items "have" $have.items "path" (printf "%s[]" .path)) }}
{{- end }}
{{- end }}
