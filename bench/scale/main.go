// Command scale measures what the control plane of an edge costs against the number
// of Services and nodes: loading everything, one node's change of health, one node
// that drains and one Service more, each until the engine has it. Every size has a
// process and a network namespace of its own.
//
//	go run ./bench/scale --sizes 100x10,5000x500
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/figure"
)

// insideVariable tells a process what to measure in its namespace.
const insideVariable = "ECLUSA_SCALE"

// size is what is measured.
type size struct {
	Engine          string
	Services, Nodes int
}

// result are milliseconds, but for the memory in megabytes.
type result struct {
	size
	// Load is the first table of an engine, Health one node's change of health in
	// it, both without an edge.
	Load, Health float64
	// Start is the first configuration of an edge until it is applied, Node a node
	// that drains, Service one Service more.
	Start, Node, Service float64
	Memory               float64
	// Served is how many Services have all they ask for.
	Served int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if text := os.Getenv(insideVariable); text != "" {
		var s size
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return err
		}
		return inside(ctx, s)
	}
	sizes := flag.String("sizes", "100x10,500x50,1000x100,5000x500,20000x5000", "Services and nodes")
	engines := flag.String("engines", strings.Join(contender.EngineNames(), ","), "the engines of the edge")
	dir := flag.String("report", "", "the folder that scale.md and scale.svg are written to")
	flag.Parse()
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	var all []result
	for text := range strings.SplitSeq(*sizes, ",") {
		for name := range strings.SplitSeq(*engines, ",") {
			s := size{Engine: name}
			if _, err := fmt.Sscanf(text, "%dx%d", &s.Services, &s.Nodes); err != nil || s.Services < 1 || s.Nodes < 1 {
				return fmt.Errorf("size %q: want Services and nodes, such as 5000x500", text)
			}
			r, err := outside(ctx, s)
			if err != nil {
				return fmt.Errorf("%s with %d Services and %d nodes: %w", name, s.Services, s.Nodes, err)
			}
			fmt.Fprintf(os.Stderr, "%+v\n", r)
			all = append(all, r)
		}
	}
	return tell(all, *dir)
}

// outside starts the process that measures.
func outside(ctx context.Context, s size) (r result, err error) {
	text, err := json.Marshal(s)
	if err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), insideVariable+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}

// column is what the report shows of results.
type column struct {
	title string
	of    func(result) float64
	plot  bool
}

var columns = []column{
	{"load (ms)", func(r result) float64 { return r.Load }, false},
	{"health (ms)", func(r result) float64 { return r.Health }, true},
	{"start (ms)", func(r result) float64 { return r.Start }, true},
	{"node drains (ms)", func(r result) float64 { return r.Node }, true},
	{"one Service more (ms)", func(r result) float64 { return r.Service }, true},
	{"memory (MB)", func(r result) float64 { return r.Memory }, false},
}

func tell(all []result, dir string) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	head := []string{"engine", "Services", "nodes", "served"}
	for _, c := range columns {
		head = append(head, c.title)
	}
	var page strings.Builder
	page.WriteString("# Cost of the control plane against its size\n\nWritten by `go run ./bench/scale`; [README.md](README.md) has the context. *Load* is the first table of the engine, *health* one node's change of health in it. *Start* is the first configuration of an edge, with its file on disk, until all of it is applied; the two after it are changes written by a cluster, until they are. Changes are medians of nine. Memory is that of the edge's process afterwards.\n\n![scale](scale.svg)\n\n")
	line := func(cells []string) {
		fmt.Fprintln(w, strings.Join(cells, "\t"))
		fmt.Fprintf(&page, "| %s |\n", strings.Join(cells, " | "))
	}
	line(head)
	fmt.Fprintf(&page, "|%s\n", strings.Repeat(" --- |", len(head)))
	curves := make(map[string]*figure.Curve)
	var order []string
	for _, r := range all {
		cells := []string{r.Engine, fmt.Sprint(r.Services), fmt.Sprint(r.Nodes), fmt.Sprint(r.Served)}
		for _, c := range columns {
			cells = append(cells, fmt.Sprintf("%.4g", c.of(r)))
			if !c.plot {
				continue
			}
			name := r.Engine + ": " + strings.TrimSuffix(c.title, " (ms)")
			if curves[name] == nil {
				curves[name] = &figure.Curve{Label: name}
				order = append(order, name)
			}
			curves[name].Points = append(curves[name].Points, figure.Point{X: float64(r.Services), Y: c.of(r), Low: c.of(r), High: c.of(r)})
		}
		line(cells)
	}
	if err := w.Flush(); err != nil || dir == "" {
		return err
	}
	var sorted []figure.Curve
	for _, name := range order {
		sorted = append(sorted, *curves[name])
	}
	plot := figure.Curves("Control plane of an edge", "Services", "milliseconds", sorted)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "scale.md"), []byte(page.String()), 0o644),
		os.WriteFile(filepath.Join(dir, "scale.svg"), []byte(plot), 0o644),
	)
}
