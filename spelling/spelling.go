// Package spelling finds the known name that was probably meant by one that is
// not known.
package spelling

import (
	"fmt"
	"strings"
)

// far is how many letters a name may differ from what was meant.
const far = 4

// Nearest returns the known name that is nearest to name, upper and lower case
// being alike, or nothing if none is near: it takes more changes than half of
// the name's letters, or than four.
func Nearest[S ~string](name string, known []S) S {
	var best S
	least := min(len(name)/2, far) + 1
	name = strings.ToLower(name)
	for _, k := range known {
		lower := strings.ToLower(string(k))
		if len(lower)-len(name) >= least || len(name)-len(lower) >= least {
			continue // also keeps very long names from costing anything
		}
		if d := distance(name, lower); d < least {
			best, least = k, d
		}
	}
	return best
}

// Hint returns what helps after a complaint about an unknown name: the question
// whether the nearest known name was meant, or else all that are known.
func Hint(name string, known []string) string {
	if near := Nearest(name, known); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "known here are " + strings.Join(known, ", ")
}

// distance is the number of letters to insert, delete or replace between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
