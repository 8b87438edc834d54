package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/report"
	"github.com/eclusa-lb/eclusa/version"
)

const (
	// maxLog is how much of each log is kept, in bytes, and maxLogLines in lines.
	maxLog      = 8 << 20
	maxLogLines = 20000
	// maxExplained is how many Services with a problem are explained.
	maxExplained = 50
)

func (p *program) bundleCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "support-bundle",
		Short: "Write an archive for those who help: configurations, states, logs, and no secrets",
		Long: `Write a .tar.gz with what is needed to find out what is wrong: what the leader knows,
explanations of Services with a problem, the custom resources, Services of type
LoadBalancer with their EndpointSlices, Nodes, the manager's pods, configurations and
logs, and Events.

Secrets are never read. Of other objects only what matters is kept, and whatever looks
like a token, password or private key is taken out of every file. Look at it before
you give it away all the same: it has names and addresses of your cluster.`,
		Example: `  kubectl eclusa support-bundle --file bundle.tar.gz`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				file = "eclusa-support-" + p.now().UTC().Format("20060102-150405") + ".tar.gz"
			}
			return p.supportBundle(cmd, file)
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "File to write; it must not exist. Default: eclusa-support-TIME.tar.gz in this folder.")
	return cmd
}

func (p *program) supportBundle(cmd *cobra.Command, file string) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	// Exclusively, and for nobody else to read.
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return usageError(fmt.Errorf("--file: %s exists already", file))
	}
	if err != nil {
		return usageError(err)
	}
	top := strings.TrimSuffix(filepath.Base(file), ".tar.gz")
	b := newBundle(f, top, p.now())
	p.collect(cmd, c, b)
	err = errors.Join(b.close(), f.Close())
	if err == nil && b.kept == 0 {
		err = &coded{fmt.Errorf("nothing could be read: %w", errors.Join(b.failures...)), exitAccess}
	}
	if err != nil {
		_ = os.Remove(file) // it is ours, and half written
		return err
	}
	for _, failure := range b.failures {
		fmt.Fprintln(cmd.ErrOrStderr(), "left out:", failure)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has %d files; look at it before you give it away\n", file, b.files)
	return err
}

// bundle writes files into an archive. Everything goes through redact.
type bundle struct {
	gz       *gzip.Writer
	tar      *tar.Writer
	top      string
	now      time.Time
	files    int
	kept     int // files that came from the cluster
	names    []string
	failures []error
	err      error
}

func newBundle(w io.Writer, top string, now time.Time) *bundle {
	gz := gzip.NewWriter(w)
	return &bundle{gz: gz, tar: tar.NewWriter(gz), top: top, now: now}
}

// text adds a file.
func (b *bundle) text(name, content string) {
	if b.err != nil {
		return
	}
	content = redact(content)
	b.err = b.tar.WriteHeader(&tar.Header{Name: b.top + "/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: b.now, Typeflag: tar.TypeReg})
	if b.err == nil {
		_, b.err = io.WriteString(b.tar, content)
	}
	b.files++
	b.names = append(b.names, name)
}

// object adds a file with a value as YAML, or notes why there is none.
func (b *bundle) object(name string, value any, err error) {
	if err == nil {
		var data []byte
		if data, err = yaml.Marshal(value); err == nil {
			b.kept++
			b.text(name, string(data))
			return
		}
	}
	b.failures = append(b.failures, fmt.Errorf("%s: %w", name, err))
}

// close ends the archive with a table of what is in it and what is not.
func (b *bundle) close() error {
	var text strings.Builder
	fmt.Fprintf(&text, "Support bundle of eclusa, made by kubectl-eclusa %s at %s.\nSecrets were not read; what looked like one was replaced by %s.\n\n", version.Number(), b.now.UTC().Format(time.RFC3339), redacted)
	for _, n := range b.names {
		fmt.Fprintln(&text, n)
	}
	for _, f := range b.failures {
		fmt.Fprintln(&text, "left out:", f)
	}
	b.text("README.txt", text.String())
	return errors.Join(b.err, b.tar.Close(), b.gz.Close())
}

// collect reads everything that goes into the bundle. What cannot be read is
// left out, and told.
func (p *program) collect(cmd *cobra.Command, c *cluster, b *bundle) {
	ctx := cmd.Context()
	if v, err := c.kube.Discovery().ServerVersion(); err != nil {
		b.failures = append(b.failures, fmt.Errorf("version of the API server: %w", err))
	} else {
		b.text("version.txt", fmt.Sprintf("kubectl-eclusa %s\nKubernetes %s\n", version.Number(), v.GitVersion))
	}
	s, err := p.status(cmd, true)
	b.object("status.yaml", s, err)
	explained := 0
	for _, svc := range s.Services {
		if svc.Level() == report.OK || explained == maxExplained || ctx.Err() != nil {
			break
		}
		e, err := p.explainQuietly(ctx, c, svc.Namespace, svc.Name)
		b.object(fmt.Sprintf("explain/%s/%s.yaml", svc.Namespace, svc.Name), e, err)
		explained++
	}
	c.collectObjects(ctx, b)
	c.collectLease(ctx, b, p.lease.namespace, p.lease.name)
	c.collectManager(ctx, b, p.managerNamespace())
}

// explainQuietly explains without telling why the leader was not asked: that was
// told before.
func (p *program) explainQuietly(ctx context.Context, c *cluster, namespace, name string) (report.Explanation, error) {
	var e report.Explanation
	err := p.consult(ctx, c, "GET", report.ExplainPath, map[string][]string{"namespace": {namespace}, "name": {name}}, nil, &e)
	if err == nil || answered(err) {
		return e, err
	}
	return c.explainFromObjects(ctx, p.now(), namespace, name)
}
