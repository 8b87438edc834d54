package lab

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// The release of the chart, as a lab with eclusa has it.
const (
	// Release is its name, ReleaseNamespace where it is.
	Release          = "eclusa"
	ReleaseNamespace = metav1.NamespaceSystem
	// ManagerName is the name of the Deployment of eclusa's cloud controller
	// manager, and of its ServiceAccount and its Lease.
	ManagerName = ccmProgram
	// Scraper is the ServiceAccount that may read the manager's metrics. It is
	// made by those who want to.
	Scraper = "prometheus"
	// ManagerImage is the image that its pods run, which every node has.
	ManagerImage = managerRepository + ":" + managerTag

	managerRepository = "eclusa.local/" + ccmProgram
	managerTag        = "lab"
	clientSecret      = "eclusa-client"
)

// valuesTemplate are the values of the chart.
//
//go:embed eclusa/values.yaml.tmpl
var valuesTemplate string

// ccmTemplate is the configuration of a manager that runs without a pod; the
// chart writes that of the others.
//
//go:embed eclusa/cloud.yaml.tmpl
var ccmTemplate string

// Helm is a script that runs Helm 4 on this lab from anywhere on the machine,
// with no configuration but the lab's.
func (l *Lab) Helm() string { return l.path("helm") }

// Values is the file with the values that the chart is installed with.
func (l *Lab) Values() string { return l.path("eclusa", "values.yaml") }

// writeHelm writes the script that Helm names.
func (l *Lab) writeHelm() error {
	home := l.path("eclusa", "helm")
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	script := "#!/bin/sh\n"
	for _, name := range []string{"HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"} {
		script += "export " + name + "=" + quote(home) + "\n"
	}
	script += fmt.Sprintf("exec nsenter --net=%s %s --kubeconfig=%s \"$@\"\n",
		l.ControlPlane.NetNS(), quote(filepath.Join(l.helms, "helm4")), quote(l.Kubeconfig()))
	return os.WriteFile(l.Helm(), []byte(script), 0o755)
}

// installChart does what a user does: the Secret with the certificate by which
// edges know the cluster, and helm install.
func (l *Lab) installChart(ctx context.Context) error {
	secret, err := l.pkiCommand(ctx, "cluster", "--name", ClusterName, "--secret",
		"--secret-name", clientSecret, "--namespace", ReleaseNamespace)
	if err != nil {
		return err
	}
	if err := l.Apply(ctx, secret); err != nil {
		return err
	}
	if err := l.writeTemplate(l.Values(), valuesTemplate, nil); err != nil {
		return err
	}
	if err := l.writeHelm(); err != nil {
		return err
	}
	src, err := source()
	if err != nil {
		return err
	}
	begun := time.Now()
	// The shell reads the script. To execute it itself fails while a program that is
	// started at the same time holds the descriptor with which it was written.
	out, err := exec.CommandContext(ctx, "sh", l.Helm(), "install", Release, filepath.Join(src, "charts", "eclusa"), "--namespace", ReleaseNamespace, "--values", l.Values()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("helm install: %w\n%s", err, bytes.TrimSpace(out))
	}
	l.say("helm install %s charts/eclusa --namespace %s --values values.yaml: done in %.1f s", Release, ReleaseNamespace, time.Since(begun).Seconds())
	return nil
}

// accountKubeconfig writes a kubeconfig with a token of the manager's
// ServiceAccount, whose rights are those that the chart gives it.
func (l *Lab) accountKubeconfig(ctx context.Context) (file string, err error) {
	clients, err := l.Clientset()
	if err != nil {
		return "", err
	}
	life := int64((30 * 24 * time.Hour).Seconds()) // as the lab's certificates
	token, err := clients.CoreV1().ServiceAccounts(ReleaseNamespace).CreateToken(ctx, ManagerName,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &life}}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of ServiceAccount %q: %w", ReleaseNamespace+"/"+ManagerName, err)
	}
	c := clientcmdapi.NewConfig()
	c.Clusters["lab"] = &clientcmdapi.Cluster{
		Server: "https://" + l.ControlPlane.APIServerAddr().String(), CertificateAuthority: l.pki("ca.crt"),
	}
	c.AuthInfos[ManagerName] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	c.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: ManagerName}
	c.CurrentContext = "lab"
	file = l.kubeconfig(ManagerName)
	return file, clientcmd.WriteToFile(*c, file)
}
