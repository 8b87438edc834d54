package monitoring_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dashboard is what is looked at in a dashboard's JSON.
type dashboard struct {
	file          string
	UID           string
	Title         string
	Description   string
	Tags          []string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type, Definition string
			Query                  any
		}
	}
	Panels []panel
}

type panel struct {
	ID         int
	Title      string
	Type       string
	Datasource struct{ UID string }
	GridPos    struct{ X, Y, W, H int }
	Targets    []struct {
		Expr       string
		RefID      string `json:"refId"`
		Datasource struct{ UID string }
	}
}

func readDashboards(t *testing.T) []dashboard {
	t.Helper()
	files, err := filepath.Glob("../charts/eclusa/files/dashboards/*.json")
	if err != nil || len(files) != 3 {
		t.Fatalf("%d dashboards, %v; want three", len(files), err)
	}
	var all []dashboard
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		d := dashboard{file: filepath.Base(f)}
		if err := json.Unmarshal(data, &d); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		all = append(all, d)
	}
	return all
}

func TestDashboards(t *testing.T) {
	uids := map[string]bool{}
	for _, d := range readDashboards(t) {
		if d.UID == "" || uids[d.UID] || d.Title == "" || d.Description == "" || d.SchemaVersion < 39 || len(d.Panels) == 0 {
			t.Errorf("%s: uid %q, title %q, description %q, schemaVersion %d, %d panels: want a uid of its own and all the others",
				d.file, d.UID, d.Title, d.Description, d.SchemaVersion, len(d.Panels))
		}
		uids[d.UID] = true
		if len(d.Templating.List) < 2 || d.Templating.List[0].Name != "datasource" || d.Templating.List[0].Type != "datasource" {
			t.Errorf("%s: want the variable datasource first, and one that says what is looked at", d.file)
		}
		ids := map[int]bool{}
		var taken [24][200]bool
		for _, p := range d.Panels {
			if p.Title == "" || ids[p.ID] || len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
				t.Errorf("%s: panel %d %q: want an ID of its own, a title, queries and the datasource ${datasource}", d.file, p.ID, p.Title)
			}
			ids[p.ID] = true
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if x >= 24 || taken[x][y] {
						t.Fatalf("%s: panel %q lies over another one, or beyond the edge", d.file, p.Title)
					}
					taken[x][y] = true
				}
			}
			refs := map[string]bool{}
			for _, q := range p.Targets {
				if refs[q.RefID] || q.Datasource.UID != "${datasource}" || q.Expr == "" {
					t.Errorf("%s: panel %q: query %q: want a refId of its own, an expression and the datasource ${datasource}", d.file, p.Title, q.RefID)
				}
				refs[q.RefID] = true
			}
		}
	}
}

// filled replaces Grafana's variables as Grafana does.
func filled(expr string, variables map[string]string) string {
	for name, value := range variables {
		expr = strings.ReplaceAll(expr, "$"+name, value)
	}
	return strings.ReplaceAll(expr, "$__rate_interval", "1m")
}
