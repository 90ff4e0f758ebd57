package main

import (
	"fmt"
	"math"
	"slices"
)

// spread is a median and its quartiles.
type spread struct{ lower, median, upper float64 }

// spreadOf interpolates between values where a quartile falls between two.
func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	quantile := func(q float64) float64 {
		if len(sorted) == 0 {
			return math.NaN()
		}
		place := q * float64(len(sorted)-1)
		below := int(place)
		above := min(below+1, len(sorted)-1)
		return sorted[below] + (place-float64(below))*(sorted[above]-sorted[below])
	}
	return spread{quantile(0.25), quantile(0.5), quantile(0.75)}
}

func (s spread) String() string {
	if math.IsNaN(s.median) || math.IsInf(s.median, 0) {
		return "-" // of what cannot be told here
	}
	return fmt.Sprintf("%.2f [%.2f-%.2f]", s.median, s.lower, s.upper)
}

// medianOf is the median of a figure of some items.
func medianOf[T any](items []T, figure func(T) float64) float64 {
	return spreadOf(figures(items, figure)).median
}

func figures[T any](items []T, figure func(T) float64) []float64 {
	values := make([]float64, len(items))
	for i, item := range items {
		values[i] = figure(item)
	}
	return values
}
