package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"

	"github.com/eclusa-lb/eclusa/report"
)

// managerLabels find the pods of the manager.
const managerLabels = "app.kubernetes.io/name=eclusa"

// maxAnswer bounds what is read from the leader, in bytes.
const maxAnswer = 64 << 20

// skew is by how much clocks may differ before a Lease counts as expired.
const skew = time.Minute

// leader is the manager that leads, to be asked.
type leader struct {
	client   *http.Client
	base     *url.URL
	identity string
	close    func()
}

// findLeader finds the leader and the way to it. Its error is the end of a
// sentence that begins with "without the leader: ".
func (p *program) findLeader(ctx context.Context, c *cluster) (*leader, error) {
	if c.config.Impersonate.UserName != "" {
		return nil, errors.New("it does not know of --as, and would answer with what you may see yourself")
	}
	where := p.lease.namespace + "/" + p.lease.name
	lease, err := c.kube.CoordinationV1().Leases(p.lease.namespace).Get(ctx, p.lease.name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("its Lease %s cannot be read: %w", where, err)
	}
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		return nil, fmt.Errorf("nobody holds the Lease %s", where)
	}
	identity := *lease.Spec.HolderIdentity
	if late := expired(lease, p.now()); late > skew {
		return nil, fmt.Errorf("the Lease %s of %q expired %s ago", where, identity, late.Round(time.Second))
	}
	pin, err := hex.DecodeString(lease.Annotations[report.CertificateAnnotation])
	if err != nil || len(pin) != sha256.Size {
		return nil, fmt.Errorf("the Lease %s does not tell the certificate of %q, in the annotation %s", where, identity, report.CertificateAnnotation)
	}
	l := &leader{identity: identity, close: func() {}}
	if p.server != "" {
		if l.base, err = parseServer(p.server); err != nil {
			return nil, err
		}
	} else {
		pod, err := c.leaderPod(ctx, p.managerNamespace(), p.manager.account, identity)
		if err != nil {
			return nil, err
		}
		port := lease.Annotations[report.PortAnnotation]
		if port == "" {
			port = "10258"
		}
		if l.base, l.close, err = c.forward(ctx, pod, port); err != nil {
			return nil, fmt.Errorf("port-forward to pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
	}
	if l.client, err = pinned(c.config, pin); err != nil {
		l.close()
		return nil, fmt.Errorf("your credentials cannot be used: %w", err)
	}
	return l, nil
}

// expired returns for how long the Lease has not been held.
func expired(lease *coordinationv1.Lease, now time.Time) time.Duration {
	if lease.Spec.RenewTime == nil || lease.Spec.LeaseDurationSeconds == nil {
		return 0
	}
	return now.Sub(lease.Spec.RenewTime.Add(time.Duration(*lease.Spec.LeaseDurationSeconds) * time.Second))
}

// leaderPod finds the pod whose process holds the Lease: the identity begins with
// its hostname, which is the pod's name, or the node's in the host's network. It is
// looked for in one namespace and must run as the manager's ServiceAccount: who may
// make a Lease somewhere, or a pod, must not be taken for the manager.
func (c *cluster) leaderPod(ctx context.Context, namespace, account, identity string) (*v1.Pod, error) {
	host := identity
	if i := strings.LastIndex(identity, "_"); i > 0 {
		host = identity[:i]
	}
	pod, err := c.kube.CoreV1().Pods(namespace).Get(ctx, host, metav1.GetOptions{})
	switch {
	case err == nil:
		return pod, checkPod(pod, account)
	case !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("reading pod %s/%s: %w", namespace, host, err)
	}
	list, err := c.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: managerLabels})
	if err != nil {
		return nil, fmt.Errorf("looking for the pod of %q in namespace %s: %w", identity, namespace, err)
	}
	for i := range list.Items {
		p := &list.Items[i]
		if p.Spec.HostNetwork && p.Spec.NodeName == host && p.Status.Phase == v1.PodRunning {
			return p, checkPod(p, account)
		}
	}
	return nil, fmt.Errorf("there is no pod of %q in namespace %s; say --manager-namespace if it runs in another, or --server if outside the cluster", identity, namespace)
}

// checkPod returns an error unless the pod runs as the manager.
func checkPod(pod *v1.Pod, account string) error {
	switch {
	case pod.Spec.ServiceAccountName != account:
		return fmt.Errorf("pod %s/%s runs as ServiceAccount %q, not %q as the manager does; say --manager-service-account if it is right", pod.Namespace, pod.Name, pod.Spec.ServiceAccountName, account)
	case pod.Status.Phase != v1.PodRunning:
		return fmt.Errorf("pod %s/%s is %s", pod.Namespace, pod.Name, pod.Status.Phase)
	}
	return nil
}

// pinned returns a client with the user's own credentials that talks to nobody
// but the holder of one certificate: the check is part of the handshake, so that
// neither a token nor a request is sent before.
func pinned(config *rest.Config, pin []byte) (*http.Client, error) {
	config = rest.CopyConfig(config)
	// These are about the API server, and another is asked here.
	config.CAData, config.CAFile, config.ServerName = nil, "", ""
	config.Insecure = true
	tc, err := config.TransportConfig()
	if err != nil {
		return nil, err
	}
	secure, err := transport.TLSConfigFor(tc)
	if err != nil {
		return nil, err
	}
	if secure == nil {
		secure = &tls.Config{}
	}
	secure.MinVersion = tls.VersionTLS12
	secure.InsecureSkipVerify = true // the pin is stronger
	secure.ServerName = "127.0.0.1"  // no name is sent, so that the certificate is the default one
	secure.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errWrongCertificate
		}
		sum := sha256.Sum256(s.PeerCertificates[0].Raw)
		if subtle.ConstantTimeCompare(sum[:], pin) != 1 {
			return errWrongCertificate
		}
		return nil
	}
	base := &http.Transport{TLSClientConfig: secure, ForceAttemptHTTP2: true}
	wrapped, err := transport.HTTPWrappersForConfig(tc, base)
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: wrapped, Timeout: config.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// errWrongCertificate says that somebody else answers where the leader should.
var errWrongCertificate = errors.New("the certificate there is not the one that the Lease names; nothing was sent to it")

// ask asks the leader. Its error is the end of a sentence as that of findLeader,
// unless it is coded.
func (l *leader) ask(ctx context.Context, method, path string, query url.Values, body, into any) error {
	u := l.base.JoinPath(path)
	u.RawQuery = query.Encode()
	var payload io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, u.String(), payload)
	if err != nil {
		return err
	}
	response, err := l.client.Do(request)
	if errors.Is(err, errWrongCertificate) {
		return errWrongCertificate
	}
	if err != nil {
		return fmt.Errorf("asking %q: %w", l.identity, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("reading the answer of %q: %w", l.identity, err)
	}
	if response.StatusCode != http.StatusOK {
		return l.refusal(method, path, response.StatusCode, data)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("reading the answer of %q: %w", l.identity, err)
	}
	return nil
}

// refusal makes an error of an answer that is none.
func (l *leader) refusal(method, path string, code int, data []byte) error {
	var r report.Refusal
	if json.Unmarshal(data, &r) != nil || r.Detail == "" {
		r.Detail = strings.TrimSpace(string(data[:min(len(data), 256)]))
	}
	switch code {
	case http.StatusUnauthorized:
		return errors.New("it does not accept your credentials")
	case http.StatusForbidden:
		return fmt.Errorf("you may not %s %s; the ClusterRole eclusa-viewer allows it", strings.ToLower(method), path)
	case http.StatusNotFound:
		if r.Detail == "" || strings.Contains(r.Detail, "404") {
			return fmt.Errorf("%q does not know %s: it is of another version", l.identity, path)
		}
		return &coded{errors.New(r.Detail), exitNotFound}
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return &coded{errors.New(r.Detail), exitUsage}
	}
	return fmt.Errorf("%q answers %d: %s", l.identity, code, r.Detail)
}

// consult asks the leader one question. The error says why there is no answer.
func (p *program) consult(ctx context.Context, c *cluster, method, path string, query url.Values, body, into any) error {
	l, err := p.findLeader(ctx, c)
	if err != nil {
		return err
	}
	defer l.close()
	return l.ask(ctx, method, path, query, body, into)
}

// answered says whether an error of consult is an answer all the same: what was
// asked is wrong, and asking elsewhere would not help.
func answered(err error) bool {
	var c *coded
	return errors.As(err, &c)
}
