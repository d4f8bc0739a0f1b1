// Package engine owns container records: what is wanted, what is, and every
// step between the two. A record is one value in the engine's database; what
// runs is the shim's, what is mounted the image room's, what is reachable the
// network's, and the engine asks them in order and unwinds in reverse.
//
// It never touches Linux itself beyond internal/sys, never shapes an answer of
// Docker's API (that is internal/api), and never blocks a reader: Get and List
// read immutable snapshots, however stuck a container may be.
package engine
