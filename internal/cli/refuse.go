package cli

import (
	"fmt"

	"github.com/spf13/pflag"
)

// refused is a flag of docker's that proa knows and cannot honour: giving it
// is an error that says why, in place of "unknown flag".
type refused struct{ why string }

func (r *refused) String() string   { return "" }
func (r *refused) Type() string     { return "value" }
func (r *refused) Set(string) error { return fmt.Errorf("proa cannot honour it: %s", r.why) }

// refuseFlag adds a flag that is refused; help does not show it.
func refuseFlag(s *pflag.FlagSet, name, why string) {
	s.Var(&refused{why}, name, "")
	_ = s.MarkHidden(name)
}

// refuseSwitch is refuseFlag for a flag that takes no value.
func refuseSwitch(s *pflag.FlagSet, name, why string) {
	refuseFlag(s, name, why)
	s.Lookup(name).NoOptDefVal = "true"
}
