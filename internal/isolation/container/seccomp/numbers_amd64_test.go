package seccomp

const (
	sysSeccomp = 317
	sysKeyctl  = 250
)
