package charts

import (
	"strings"
	"testing"
)

// refusals are values that are refused, each with what the message must say: the
// key at least.
var refusals = []struct{ values, want string }{
	// By the schema.
	{"replicas: 3", "additional properties 'replicas' not allowed"},
	{"controllerManager: {replica: 3}", "at '/controllerManager': additional properties 'replica' not allowed"},
	{"controllerManager: {replicas: -1}", "at '/controllerManager/replicas': minimum: got -1, want 0"},
	{"controllerManager: {replicas: two}", "at '/controllerManager/replicas': got string, want integer"},
	{"controllerManager: {image: {pullPolicy: Sometimes}}", "at '/controllerManager/image/pullPolicy': value must be one of 'IfNotPresent', 'Always', 'Never'"},
	{"controllerManager: {image: {digest: latest}}", "at '/controllerManager/image/digest'"},
	{"controllerManager: {image: {tag: 'a b'}}", "at '/controllerManager/image/tag'"},
	{"controllerManager: {podLabels: {app.kubernetes.io/name: web}}", "at '/controllerManager/podLabels/app.kubernetes.io~1name'"},
	{"controllerManager: {podLabels: {a: 'b c'}}", "at '/controllerManager/podLabels/a'"},
	{"controllerManager: {logLevel: loud}", "at '/controllerManager/logLevel'"},
	{"controllerManager: {bindAddress: localhost}", "at '/controllerManager/bindAddress'"},
	{"controllerManager: {extraArgs: [verbose]}", "at '/controllerManager/extraArgs/0'"},
	{"controllerManager: {resources: {limits: {memory: lots}}}", "at '/controllerManager/resources/limits/memory'"},
	{"controllerManager: {tolerations: [{key: a, effects: NoSchedule}]}", "at '/controllerManager/tolerations/0': additional properties 'effects' not allowed"},
	{"clusterName: Production", "at '/clusterName'"},
	{"nodeAddressTypes: [Hostname]", "at '/nodeAddressTypes/0': value must be one of 'InternalIP', 'ExternalIP'"},
	{"nodeAddressTypes: []", "at '/nodeAddressTypes': minItems: got 0, want 1"},
	{"nodePortRange: 30000", "at '/nodePortRange': got number, want string"},
	{"nodePortRange: '30000'", "at '/nodePortRange'"},
	{"serveServicesWithoutClass: 'no'", "at '/serveServicesWithoutClass': got string, want boolean"},
	{"clientCertificate: {certificate: abc, key: abc, ca: abc}", "at '/clientCertificate/certificate'"},
	{"addressPools: {default: {}}", "at '/addressPools/default': missing property 'addresses'"},
	{"addressPools: {default: {addresses: 192.0.2.0/24}}", "at '/addressPools/default/addresses': got string, want array"},
	{"addressPools: {default: {addresses: [pool]}}", "at '/addressPools/default/addresses/0'"},
	{"addressPools: {default: {addresses: [192.0.2.0/24], autoAsign: false}}", "at '/addressPools/default': additional properties 'autoAsign' not allowed"},
	{"addressPools: {Default: {addresses: [192.0.2.0/24]}}", "at '/addressPools': additional properties 'Default' not allowed"},
	{"edges: {edge-1: {endpoint: 'http://192.0.2.10:7443'}}", "at '/edges/edge-1/endpoint'"},
	{"edges: {edge-1: {endpoint: 'https://192.0.2.10:7443/v1'}}", "at '/edges/edge-1/endpoint'"},
	{"edges: {edge-1: {}}", "at '/edges/edge-1': missing property 'endpoint'"},
	{"metrics: {serviceMonitor: {interval: often}}", "at '/metrics/serviceMonitor/interval'"},
	{"metrics: {scrapers: [prometheus]}", "at '/metrics/scrapers/0': got string, want object"},
	{"edge: {nodes: {worker-1: {address: worker-1}}}", "at '/edge/nodes/worker-1/address'"},
	{"edge: {apiPort: 70000}", "at '/edge/apiPort': maximum: got 70,000, want 65,535"},
	{"edge: {stateDir: state}", "at '/edge/stateDir'"},
	{"edge: {config: {engine: nginx}}", "at '/edge/config/engine'"},
	{"edge: {config: {announce: {mode: arp}}}", "at '/edge/config/announce/mode'"},
	{"edge: {config: {name: edge-1}}", "at '/edge/config': additional properties 'name' not allowed"},
	{"edge: {config: {clusters: [{name: prod}]}}", "at '/edge/config/clusters/0': missing properties 'addressRanges', 'nodeRanges'"},
	{"edge: {config: {proxy: {dialTimeout: 500}}}", "at '/edge/config/proxy/dialTimeout': got number, want string"},

	// Values that contradict each other.
	{"clientCertificate: {existingSecret: a, certificate: '-----BEGIN CERTIFICATE-----'}",
		`clientCertificate.existingSecret: "a" is named, and a certificate is given too`},
	{"clientCertificate: {certificate: '-----BEGIN CERTIFICATE-----', ca: '-----BEGIN CERTIFICATE-----'}",
		"clientCertificate.key: is missing"},
	{"controllerManager: {extraArgs: [--v=2, --cluster-name=x]}",
		`controllerManager.extraArgs: "--cluster-name=x": is the chart's to set: set clusterName`},
	{"controllerManager: {extraArgs: [--tls-cert-file=/x]}", "is the chart's to set: set controllerManager.servingCertificate"},
	{"controllerManager: {servingCertificate: {serverName: a.example.org}}", `controllerManager.servingCertificate.serverName: "a.example.org": has no meaning without existingSecret`},
	{"edge: {enabled: true}", "edge.nodes: is empty"},
	{"edge: {enabled: true, nodes: {worker-1: {address: 192.0.2.11}}}", "edge.config.clusters: is empty"},
	{edgeValues + "  config: {clusters: [" + clusterValue + "], announce: {mode: interface}}", "edge.config.announce.interface: is missing"},
	{edgeValues + "  config: {clusters: [" + clusterValue + "], announce: {mode: none, interface: eth0}}", `edge.config.announce.interface: "eth0": has no meaning with mode "none"`},
	{edgeValues + "  managementPort: 7443\n  config: {clusters: [" + clusterValue + "]}", "edge.managementPort: 7443 is edge.apiPort too"},
	{edgeValues + "  config: {clusters: [" + clusterValue + "]}\nedges: {worker-1: {endpoint: 'https://192.0.2.11:7443'}}", "edges.worker-1: is made from edge.nodes.worker-1 already"},
	{"edge: {enabled: true, nodes: {a: {address: 192.0.2.11}, b: {address: 192.0.2.11}}, config: {clusters: [" + clusterValue + "]}}", `edge.nodes.b.address: "192.0.2.11" is the address of a too`},
	{"edge: {enabled: true, nodes: {a: {address: 192.0.2.11, sourceAddresses: [192.0.2.64/29]}}, config: {clusters: [" + clusterValue + "]}}", `edge.nodes.a.sourceAddresses: have no meaning with edge.config.engine "proxy"`},
	{"edge: {config: {nftables: {sourceAddresses: [192.0.2.64/29]}}}", "at '/edge/config/nftables': additional properties 'sourceAddresses' not allowed"},
	{"metrics: {service: {enabled: false}, serviceMonitor: {enabled: true}}", "metrics.service.enabled: is false"},
}

const (
	edgeValues   = "edge:\n  enabled: true\n  nodes: {worker-1: {address: 192.0.2.11}}\n"
	clusterValue = "{name: prod, addressRanges: [192.0.2.128/25], nodeRanges: [192.0.2.0/25]}"
)

func TestRefusals(t *testing.T) {
	for _, h := range helms(t) {
		for _, r := range refusals {
			_, err := h.template(t, "eclusa", writeValues(t, r.values))
			if err == nil || !strings.Contains(err.Error(), r.want) {
				t.Errorf("%s: %s\n got: %v\nwant: %s", h.name, r.values, err, r.want)
			}
		}
	}
}

// TestWithoutMonitoring renders for a cluster without the Prometheus operator.
func TestWithoutMonitoring(t *testing.T) {
	for _, h := range helms(t) {
		for key, kind := range map[string]string{"metrics.serviceMonitor.enabled": "ServiceMonitor", "alerts.enabled": "PrometheusRule"} {
			_, err := h.run(t, "template", "eclusa", "eclusa", "--set", key+"=true")
			want := key + ": this cluster has no " + kind + "s (monitoring.coreos.com/v1): install the Prometheus operator first"
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %s: got %v, want %q", h.name, key, err, want)
			}
		}
	}
}
