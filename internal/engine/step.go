package engine

// onStep is called between the steps of what must leave nothing behind when
// the engine is killed there. Only tests set it, to kill themselves.
var onStep func(name string)

func step(name string) {
	if onStep != nil {
		onStep(name)
	}
}
