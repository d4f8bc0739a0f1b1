package step

import "context"

// PartsType is the type of a mount that is an overlay in all but its name:
// only Executor knows it, nobody can mount it by mistake.
const PartsType = "proa-overlay"

type partsKey struct{}

// withParts asks for the parts of a mount (WantsParts).
func withParts(ctx context.Context) context.Context {
	return context.WithValue(ctx, partsKey{}, true)
}

// WantsParts tells whether mounts that are asked for with ctx are for an
// Executor that mounts them itself: then an overlay has the type PartsType.
func WantsParts(ctx context.Context) bool {
	on, _ := ctx.Value(partsKey{}).(bool)
	return on
}
