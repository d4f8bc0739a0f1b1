package erofs

import "sort"

// withDots puts "." and ".." where they sort among the names: entries of a
// directory are in the order of their bytes, these two included, because the
// kernel looks names up by bisection.
func withDots(names []string) []string {
	all := make([]string, 0, len(names)+2)
	dot := sort.SearchStrings(names, ".")
	dotdot := sort.SearchStrings(names, "..")
	all = append(all, names[:dot]...)
	all = append(all, ".")
	all = append(all, names[dot:dotdot]...)
	all = append(all, "..")
	return append(all, names[dotdot:]...)
}

// eachBlock calls f with the names of each block of a directory. A block is an
// array of entries, then their names; what does not fit begins the next block.
func eachBlock(all []string, f func(names []string, used int)) {
	for len(all) > 0 {
		n, used := 0, 0
		for n < len(all) && used+direntSize+len(all[n]) <= BlockSize {
			used += direntSize + len(all[n])
			n++
		}
		f(all[:n], used)
		all = all[n:]
	}
}

// dirSize is the size in bytes of a directory that holds names, which are sorted.
func dirSize(names []string) uint64 {
	var size uint64
	eachBlock(withDots(names), func(_ []string, used int) {
		size = align(size, BlockSize) + uint64(used)
	})
	return size
}

// dirBlocks returns the contents of a directory. Every inode has its place.
func (p *plan) dirBlocks(pl *place) []byte {
	b := make([]byte, 0, pl.size)
	eachBlock(withDots(pl.names), func(names []string, _ int) {
		for len(b)%BlockSize != 0 {
			b = append(b, 0)
		}
		off := len(names) * direntSize
		for _, name := range names {
			to := pl
			switch name {
			case ".":
			case "..":
				to = pl.parent
			default:
				to = p.placed[pl.ino.Children[name]]
			}
			b = le.AppendUint64(b, to.nid())
			b = le.AppendUint16(b, uint16(off))
			b = append(b, direntTypes[to.ino.Mode&TypeMask], 0)
			off += len(name)
		}
		for _, name := range names {
			b = append(b, name...)
		}
	})
	return b
}
