package edge

import "reflect"

// difference counts the entries that are new, other or gone.
func difference[K comparable, V any](before, after map[K]V) (added, changed, removed int) {
	for k, v := range after {
		old, ok := before[k]
		switch {
		case !ok:
			added++
		case !reflect.DeepEqual(old, v):
			changed++
		}
	}
	return added, changed, len(before) + added - len(after)
}
