package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"maps"
	"net"
	"strconv"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/server"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/eclusa-lb/eclusa/report"
)

// advertisedLeases is a client of Leases that tells with every write of the
// holder how the holder is reached: whoever reads who leads reads in the same
// version of the Lease how to know the leader. A certificate that is replaced on
// disk is told with the next renewal. When nobody holds the Lease it tells
// nothing.
type advertisedLeases struct {
	coordinationclient.LeasesGetter
	advert func() map[string]string
}

func (a advertisedLeases) Leases(namespace string) coordinationclient.LeaseInterface {
	return advertisedLease{a.LeasesGetter.Leases(namespace), a.advert}
}

type advertisedLease struct {
	coordinationclient.LeaseInterface
	advert func() map[string]string
}

func (a advertisedLease) Create(ctx context.Context, lease *coordinationv1.Lease, o metav1.CreateOptions) (*coordinationv1.Lease, error) {
	return a.LeaseInterface.Create(ctx, a.advertise(lease), o)
}

func (a advertisedLease) Update(ctx context.Context, lease *coordinationv1.Lease, o metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	return a.LeaseInterface.Update(ctx, a.advertise(lease), o)
}

// advertise returns the Lease with what its holder tells, and without what the
// holder before has told.
func (a advertisedLease) advertise(lease *coordinationv1.Lease) *coordinationv1.Lease {
	lease = lease.DeepCopy()
	delete(lease.Annotations, report.CertificateAnnotation)
	delete(lease.Annotations, report.PortAnnotation)
	if holder := lease.Spec.HolderIdentity; holder == nil || *holder == "" {
		return lease
	}
	if lease.Annotations == nil {
		lease.Annotations = map[string]string{}
	}
	maps.Copy(lease.Annotations, a.advert())
	return lease
}

// advertOf returns a function that tells how a server is reached and known;
// nothing if it does not serve, or has no certificate that can be told of.
func advertOf(s *server.SecureServingInfo) func() map[string]string {
	return func() map[string]string {
		if s == nil || s.Cert == nil || s.Listener == nil {
			return nil
		}
		certificates, _ := s.Cert.CurrentCertKeyContent()
		block, _ := pem.Decode(certificates)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil
		}
		sum := sha256.Sum256(block.Bytes)
		told := map[string]string{report.CertificateAnnotation: hex.EncodeToString(sum[:])}
		if a, ok := s.Listener.Addr().(*net.TCPAddr); ok {
			told[report.PortAnnotation] = strconv.Itoa(a.Port)
		}
		return told
	}
}
