package flat

import "github.com/containerd/errdefs"

// Merge writes the image index of layers, lowest first, to the file out, which
// appears whole or not at all. Device i+1 of the index is layers[i].Data().
// Layers that do not fit together (a hard link whose target no lower layer
// has) are ErrInvalidArgument.
func Merge(layers []*Layer, out string) error {
	return errdefs.ErrNotImplemented
}
