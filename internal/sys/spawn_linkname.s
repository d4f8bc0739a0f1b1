// Empty: lets spawn.go declare the runtime's fork hooks without bodies.
