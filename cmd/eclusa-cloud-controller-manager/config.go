package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// reference is the commented reference of every key; a test compares it with
// Config.
//
//go:embed reference.yaml
var reference string

// Config is the file given with --cloud-config. reference.yaml says what each
// key means.
type Config struct {
	ClusterName      string       `yaml:"clusterName"`
	Client           ClientConfig `yaml:"client"`
	NodeAddressTypes []string     `yaml:"nodeAddressTypes"`
	NodePortRange    PortRange    `yaml:"nodePortRange"`
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

// maxConfig bounds the file, in bytes.
const maxConfig = 1 << 20

// addressTypes are those that a Node can have and an edge can reach.
var addressTypes = []string{
	string(corev1.NodeInternalIP), string(corev1.NodeExternalIP),
}

// readConfig reads and checks the file. Its error has a line for each complaint,
// with file and line number.
func readConfig(file string) (Config, error) {
	info, err := os.Stat(file)
	if err != nil {
		return Config{}, err
	}
	if info.Size() > maxConfig {
		return Config{}, fmt.Errorf("%s: has %d bytes, more than the %d that a configuration may have", file, info.Size(), maxConfig)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return Config{}, err
	}
	c, complaints := parseConfig(data)
	var errs []error
	for _, complaint := range complaints {
		errs = append(errs, fmt.Errorf("%s:%s", file, complaint))
	}
	return c, errors.Join(errs...)
}

// parseConfig decodes a file and says everything that is wrong with it.
func parseConfig(data []byte) (Config, []complaint) {
	c := Config{NodeAddressTypes: slices.Clone(addressTypes)}
	d := decode(data, &c)
	if d.fatal {
		return Config{}, d.complaints
	}
	for _, key := range []struct{ path, value, what string }{
		{"client.certFile", c.Client.CertFile, "the certificate that `eclusa-edge pki cluster` makes"},
		{"client.keyFile", c.Client.KeyFile, "the key of client.certFile"},
		{"client.caFile", c.Client.CAFile, "the CA that edges' certificates come from"},
	} {
		if key.value == "" {
			d.complain(d.lines[key.path], key.path, "is missing: it must name the file with %s", key.what)
		}
	}
	if len(c.NodeAddressTypes) == 0 {
		d.complain(d.lines["nodeAddressTypes"], "nodeAddressTypes", "must name one of %s at least", strings.Join(addressTypes, ", "))
	}
	if _, _, err := c.NodePortRange.bounds(); err != nil {
		d.complain(d.lines["nodePortRange"], "nodePortRange", "%v", err)
	}
	seen := make(map[string]bool)
	for i, t := range c.NodeAddressTypes {
		path := fmt.Sprintf("nodeAddressTypes[%d]", i)
		switch {
		case !slices.Contains(addressTypes, t):
			d.complain(d.lines[path], path, "%q: must be one of %s%s", t, strings.Join(addressTypes, ", "), didYouMean(t, addressTypes))
		case seen[t]:
			d.complain(d.lines[path], path, "%q is given twice", t)
		}
		seen[t] = true
	}
	slices.SortStableFunc(d.complaints, func(a, b complaint) int { return a.line - b.line })
	return c, d.complaints
}

// nodeAddressTypes returns the types as Kubernetes has them.
func (c Config) nodeAddressTypes() []corev1.NodeAddressType {
	var types []corev1.NodeAddressType
	for _, t := range c.NodeAddressTypes {
		types = append(types, corev1.NodeAddressType(t))
	}
	return types
}
