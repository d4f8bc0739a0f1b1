package sys

// Settle gives the child what every process of an instance has, behind either
// wall, before its ids and limits: its three descriptors and no other, with
// reaper a PID 1 above it, default signals, a keyring and a session of its own,
// with terminal descriptor 0 as its controlling terminal, and a file mode mask
// (nil: 022). One list of steps, so that the walls cannot drift apart.
func (p *Program) Settle(in, out, err Arg, reaper, terminal bool, umask *uint32) {
	p.DetachFiles(in, out, err)
	if reaper {
		p.Reaper("proa-init")
		p.DieWithParent() // of the reaper
	}
	p.DefaultSignals()
	p.NewKeyring()
	p.NewSession()
	if terminal {
		p.TakeTerminal(Int(0))
	}
	mask := uint32(0o022)
	if umask != nil {
		mask = *umask
	}
	p.Umask(mask)
}
