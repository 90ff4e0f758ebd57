package trouble

import "testing"

func TestEuros(t *testing.T) {
	t.Parallel()
	for cents, want := range map[euros]string{
		0:           "0.00 EUR",
		7:           "0.07 EUR",
		99_999:      "999.99 EUR",
		100_000:     "1,000.00 EUR",
		800_000_000: "8,000,000.00 EUR",
		-123_456:    "-1,234.56 EUR",
	} {
		if got := cents.String(); got != want {
			t.Errorf("%d cents are %s, want %s", int64(cents), got, want)
		}
	}
}
