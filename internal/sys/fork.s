// Empty: lets fork.go declare the runtime's fork hooks without bodies.
