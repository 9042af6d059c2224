package gateway

// Providers are the upstreams that the gateway knows.
type Providers struct {
	path string
}

// OpenProviders reads the upstreams of a providers file, which need not exist.
// It is read again when it changed.
func OpenProviders(path string) (*Providers, error) {
	return &Providers{path: path}, nil
}
