package main

import (
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/configfile"
)

// reference is the commented reference of every key; a test compares it with
// Config.
//
//go:embed reference.yaml
var reference string

// Config is the file given with --cloud-config. reference.yaml says what each
// key means.
type Config struct {
	ClusterName        string       `yaml:"clusterName"`
	Client             ClientConfig `yaml:"client"`
	NodeAddressTypes   []string     `yaml:"nodeAddressTypes"`
	DrainCordonedNodes bool         `yaml:"drainCordonedNodes"`
	NodePortRange      PortRange    `yaml:"nodePortRange"`
}

// PortRange is a range such as "30000-32767"; empty is none.
type PortRange string

// size returns the number of ports in a valid range, and zero of no range.
func (r PortRange) size() int {
	first, last, err := r.bounds()
	if err != nil || r == "" {
		return 0
	}
	return last - first + 1
}

func (r PortRange) bounds() (first, last int, err error) {
	if r == "" {
		return 0, 0, nil
	}
	from, to, found := strings.Cut(string(r), "-")
	first, errFrom := strconv.Atoi(from)
	last, errTo := strconv.Atoi(to)
	if !found || errFrom != nil || errTo != nil || first < 1 || last > 65535 || first > last {
		return 0, 0, fmt.Errorf("%q: must be the first and the last port, such as 30000-32767", string(r))
	}
	return first, last, nil
}

// ClientConfig is how this program proves to edges who it is, and they to it.
type ClientConfig struct {
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
	CAFile   string `yaml:"caFile"`
}

// addressTypes are those that a Node can have and an edge can reach.
var addressTypes = []string{
	string(corev1.NodeInternalIP), string(corev1.NodeExternalIP),
}

// readConfig reads and checks the file. Its error has a line for each complaint,
// with file, line and key.
func readConfig(file string) (Config, error) {
	c := defaultConfig()
	if err := configfile.Read(file, &c); err != nil {
		return Config{}, err
	}
	return c, nil
}

// defaultConfig returns the configuration of an empty file.
func defaultConfig() Config { return Config{NodeAddressTypes: slices.Clone(addressTypes)} }

// Check complains about what is wrong in meaning.
func (c *Config) Check(f *configfile.File) {
	for _, key := range []struct{ path, value, what string }{
		{"client.certFile", c.Client.CertFile, "the certificate that `eclusa-edge pki cluster` makes"},
		{"client.keyFile", c.Client.KeyFile, "the key of client.certFile"},
		{"client.caFile", c.Client.CAFile, "the CA that edges' certificates come from"},
	} {
		if key.value == "" {
			f.Complain(key.path, "missing; it must name the file with %s", key.what)
		}
	}
	if len(c.NodeAddressTypes) == 0 {
		f.Complain("nodeAddressTypes", "missing; it must name %s or both", strings.Join(addressTypes, " or "))
	}
	for i, t := range c.NodeAddressTypes {
		key := fmt.Sprintf("nodeAddressTypes[%d]", i)
		f.OneOf(key, t, addressTypes...)
		if slices.Contains(c.NodeAddressTypes[:i], t) {
			f.Complain(key, "%q: is in the list already", t)
		}
	}
	if _, _, err := c.NodePortRange.bounds(); err != nil {
		f.Complain("nodePortRange", "%v", err)
	}
}

// nodeAddressTypes returns the types as Kubernetes has them.
func (c Config) nodeAddressTypes() []corev1.NodeAddressType {
	var types []corev1.NodeAddressType
	for _, t := range c.NodeAddressTypes {
		types = append(types, corev1.NodeAddressType(t))
	}
	return types
}
