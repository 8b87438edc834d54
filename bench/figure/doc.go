// Package figure makes figures of samples: medians, ratios within a round with
// their intervals, tables and plots. It measures nothing.
package figure
