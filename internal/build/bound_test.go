package build

import (
	"math"
	"testing"
)

func TestLargestFile(t *testing.T) {
	for _, c := range []struct{ layer, room, want int64 }{
		{64 << 30, math.MaxInt64, 64 << 30}, {64 << 30, 10 << 30, 5 << 30}, {8 << 20, 1 << 40, minFile}, {64 << 30, 0, minFile},
	} {
		if got := largestFile(c.layer, c.room); got != c.want {
			t.Errorf("layers of %d, %d left: %d, want %d", c.layer, c.room, got, c.want)
		}
	}
}
