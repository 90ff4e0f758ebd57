package main

import "testing"

func TestSpread(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		values []float64
		want   string
	}{
		{nil, "-"},
		{[]float64{3}, "3.00 [3.00-3.00]"},
		{[]float64{4, 1}, "2.50 [1.75-3.25]"},
		{[]float64{5, 1, 2, 4, 3}, "3.00 [2.00-4.00]"},
	} {
		if got := spreadOf(test.values).String(); got != test.want {
			t.Errorf("of %v: %s, want %s", test.values, got, test.want)
		}
	}
}
