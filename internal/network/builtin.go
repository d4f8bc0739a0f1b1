package network

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"proa/internal/isolation"
)

// Builtin are the names of the networks that there always are.
var Builtin = []string{string(isolation.NetworkBridge), "host", "none"}

// IsBuiltin tells whether a network is one that there always is.
func IsBuiltin(name string) bool { return slices.Contains(Builtin, name) }

// ID is the id of a built-in network: 64 hex digits, the same on every host,
// since nothing about it differs.
func ID(name string) string {
	sum := sha256.Sum256([]byte("proa/network/" + name))
	return hex.EncodeToString(sum[:])
}

// Driver is the driver of a built-in network as Docker names it.
func Driver(name string) string {
	if name == "none" {
		return "null"
	}
	return name
}

// Find gives the built-in network with a name, an id or the beginning of one
// that fits no other.
func Find(ref string) (name string, ok bool) {
	if IsBuiltin(ref) {
		return ref, true
	}
	if ref == "" {
		return "", false
	}
	for _, n := range Builtin {
		if strings.HasPrefix(ID(n), ref) {
			if ok {
				return "", false
			}
			name, ok = n, true
		}
	}
	return name, ok
}
