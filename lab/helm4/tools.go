//go:build tools

// Package helm4 names the program that the lab builds, so that go mod tidy keeps
// its module.
package helm4

import _ "helm.sh/helm/v4/cmd/helm"
