package monitoring

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

var (
	// Quoted text, what stands between braces and brackets, and the labels behind
	// modifiers are no names of metrics. Quoted text may have braces in it.
	quoted     = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'`)
	noNames    = regexp.MustCompile(`\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)`)
	identifier = regexp.MustCompile(`[0-9.]*[a-zA-Z_:][a-zA-Z0-9_:]*\s*\(?`)
	keywords   = []string{"and", "or", "unless", "bool", "offset", "inf", "nan", "by", "without", "on", "ignoring", "group_left", "group_right"}
)

// MetricsIn returns the names of the metrics that an expression refers to,
// sorted, supposing that Prometheus finds the expression valid.
func MetricsIn(expr string) []string {
	names := map[string]bool{}
	expr = noNames.ReplaceAllString(quoted.ReplaceAllString(expr, ""), " ")
	for _, id := range identifier.FindAllString(expr, -1) {
		name := strings.TrimSpace(id)
		number := strings.ContainsAny(name[:1], "0123456789.")
		if !number && !strings.HasSuffix(name, "(") && !slices.Contains(keywords, strings.ToLower(name)) {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
