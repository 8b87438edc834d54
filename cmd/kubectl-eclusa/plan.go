package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/provider"
	"github.com/eclusa-lb/eclusa/report"
)

// mostOthers is how many Services outside the files are printed.
const mostOthers = 20

func (p *program) planCommand() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "plan -f FILE",
		Short: "Show what eclusa would do with manifests, without doing it",
		Long: `Show what eclusa would do with the Services, AddressPools and Edges in manifests:
which address of which pool, on which edges, which annotations it could not honour,
what would be refused, what would change for other Services, and the difference to
what is served now. Nothing is written. The answer is made with the manager's own
decisions.

A manifest counts as the whole of its object. What the API server would add, such as
node ports, is taken from the living object, or assumed and told. Objects of other
kinds are skipped.`,
		Example: `  kubectl eclusa plan -f service.yaml
  helm template web ./web | kubectl eclusa plan -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.checkOutput(); err != nil {
				return err
			}
			if len(files) == 0 {
				return usageError(errors.New("-f is missing: it must name a file with manifests, or be - for standard input"))
			}
			return p.plan(cmd, files)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "File with manifests, several documents allowed; - is standard input. May be given several times.")
	return cmd
}

func (p *program) plan(cmd *cobra.Command, files []string) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	m := &manifests{namespace: c.namespace, skipped: map[string]int{}}
	for _, f := range files {
		if err := m.read(f, cmd.InOrStdin()); err != nil {
			return usageError(err)
		}
	}
	if len(m.objects) == 0 {
		return usageError(fmt.Errorf("%s: there is no Service, AddressPool or Edge", strings.Join(files, ", ")))
	}
	if len(m.skipped) > 0 && p.output != "json" && p.output != "yaml" {
		fmt.Fprintln(cmd.ErrOrStderr(), "skipped, since eclusa has nothing to do with it:", m.skippedText())
	}
	out, err := p.askPlan(cmd, c, report.PlanRequest{Objects: m.objects})
	if err != nil {
		return err
	}
	return p.finish(cmd, out.Level(), out, func(pr *printer) { pr.plan(out) })
}

// askPlan asks the leader, or decides itself as the leader would.
func (p *program) askPlan(cmd *cobra.Command, c *cluster, request report.PlanRequest) (report.Plan, error) {
	var out report.Plan
	err := p.consult(cmd.Context(), c, http.MethodPost, report.PlanPath, nil, request, &out)
	if err == nil || answered(err) {
		return out, err
	}
	remark := p.remark(cmd, err)
	w, err := c.world(cmd.Context(), p.now())
	if err != nil {
		return out, err
	}
	out, err = provider.SnapshotOf(w).Plan(cmd.Context(), request)
	out.Remark = remark
	switch {
	case errors.Is(err, report.ErrNotFound):
		return out, &coded{err, exitNotFound}
	case err != nil:
		return out, usageError(err)
	}
	return out, nil
}

// manifests are objects read from files.
type manifests struct {
	namespace string // of objects that name none
	objects   []json.RawMessage
	skipped   map[string]int
	size      int
}

// read reads the documents of one file.
func (m *manifests) read(file string, stdin io.Reader) error {
	in, name := stdin, "standard input"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in, name = f, file
	}
	data, err := io.ReadAll(io.LimitReader(in, report.MaxPlan+1))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if m.size += len(data); m.size > report.MaxPlan {
		return fmt.Errorf("%s: there are more than %d bytes of manifests", name, report.MaxPlan)
	}
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for i := 1; ; i++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = m.add(doc)
		}
		if err != nil {
			return fmt.Errorf("%s: document %d: %w", name, i, err)
		}
	}
}

// add takes one document, or the items of a list.
func (m *manifests) add(doc []byte) error {
	data, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return fmt.Errorf("is not YAML: %w", err)
	}
	if string(data) == "null" {
		return nil
	}
	var o struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(data, &o); err != nil || o.Kind == "" {
		return errors.New("is no Kubernetes object: apiVersion and kind must be given")
	}
	if strings.HasSuffix(o.Kind, "List") && o.Items != nil {
		for _, item := range o.Items {
			if err := m.add(item); err != nil {
				return err
			}
		}
		return nil
	}
	service := o.Kind == "Service" && o.APIVersion == "v1"
	own := o.APIVersion == v1alpha1.GroupVersion.String() && (o.Kind == v1alpha1.AddressPoolKind || o.Kind == v1alpha1.EdgeKind)
	if !service && !own {
		m.skipped[o.Kind]++
		return nil
	}
	if service && o.Metadata.Namespace == "" {
		if data, err = withNamespace(data, m.namespace); err != nil {
			return err
		}
	}
	m.objects = append(m.objects, data)
	return nil
}

func withNamespace(data []byte, namespace string) ([]byte, error) {
	var o map[string]any
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, err
	}
	meta, ok := o["metadata"].(map[string]any)
	if !ok {
		return nil, errors.New("metadata is missing")
	}
	meta["namespace"] = namespace
	return json.Marshal(o)
}

func (m *manifests) skippedText() string {
	var texts []string
	for kind, n := range m.skipped {
		texts = append(texts, fmt.Sprintf("%d %s", n, printable(kind)))
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

func (p *printer) plan(out report.Plan) {
	p.line("nothing was changed   %s", p.origin(out.Origin))
	for _, o := range out.Objects {
		p.line("")
		p.line("%s %s: %s", o.Kind, o.Name, p.paint(colourOf(o.Action), o.Action))
		p.detail(o.Findings, o.Changes, out)
	}
	for _, s := range out.Services {
		p.line("")
		p.plannedService("Service", s, out)
	}
	if len(out.Others) > 0 {
		p.line("")
		p.line("other Services would change too:")
		for _, s := range out.Others[:min(len(out.Others), mostOthers)] {
			p.plannedService("Service", s, out)
		}
		if more := len(out.Others) - mostOthers; more > 0 {
			p.line("and %d more; -o yaml shows all", more)
		}
	}
	if len(out.Assumptions) > 0 {
		p.line("")
		for _, a := range out.Assumptions {
			p.line("%s", p.paint(faint, "assuming that "+a))
		}
	}
}

func (p *printer) plannedService(kind string, s report.PlannedService, out report.Plan) {
	p.line("%s %s/%s: %s", kind, s.Namespace, s.Name, p.paint(colourOf(s.Action), s.Action))
	for _, a := range s.Addresses {
		text := a.Address
		if a.New {
			text += " (new)"
		}
		if a.Pool != "" {
			text += " of pool " + a.Pool
		}
		where := "on no edge"
		if len(s.Edges) > 0 {
			where = "on " + strings.Join(s.Edges, ", ")
		}
		p.line("  %s, %s", text, where)
	}
	for _, l := range s.Listeners {
		p.line("  %d/%s → %s", l.Port, l.Protocol, target(l))
	}
	if s.Action == report.ActionRemove {
		s.Changes = nil // all of it goes
	}
	p.detail(s.Findings, s.Changes, out)
}

// detail prints what is wrong and what is different.
func (p *printer) detail(findings []report.Finding, changes []report.Change, out report.Plan) {
	for _, l := range p.findings(findings, out.Time, "  ") {
		p.line("%s", l)
	}
	for _, c := range changes {
		before, after := printable(c.Before), printable(c.After)
		switch {
		case c.Before == "":
			p.line("  %s %s: %s", p.paint(green, "+"), c.Path, after)
		case c.After == "":
			p.line("  %s %s: %s", p.paint(red, "-"), c.Path, before)
		default:
			p.line("  %s %s: %s → %s", p.paint(yellow, "~"), c.Path, before, after)
		}
	}
}
