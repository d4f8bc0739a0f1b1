package seccomp

const (
	sysSeccomp = 277
	sysKeyctl  = 219
)
