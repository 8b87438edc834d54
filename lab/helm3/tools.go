//go:build tools

// Package helm3 names the program that the lab builds, so that go mod tidy keeps
// its module.
package helm3

import _ "helm.sh/helm/v3/cmd/helm"
