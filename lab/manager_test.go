package lab

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestHolder(t *testing.T) {
	now := time.Now()
	lease := func(holder string, renewed time.Duration) coordinationv1.LeaseSpec {
		acquired, renew, seconds := metav1.NewMicroTime(now.Add(-time.Hour)), metav1.NewMicroTime(now.Add(-renewed)), int32(15)
		return coordinationv1.LeaseSpec{HolderIdentity: &holder, AcquireTime: &acquired, RenewTime: &renew, LeaseDurationSeconds: &seconds}
	}
	for _, test := range []struct {
		name  string
		lease coordinationv1.LeaseSpec
		want  string
		says  string
	}{
		{"pod", lease("ccm-5d-x7_8f0e", time.Second), "ccm-5d-x7", ""},
		{"nobody yet", coordinationv1.LeaseSpec{}, "", "nobody"},
		{"given back", lease("", time.Second), "", "nobody"},
		{"expired", lease("ccm-5d-x7_8f0e", 16*time.Second), "", "expired"},
	} {
		got, since, err := holder(test.lease, now)
		if got != test.want || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %q, %v; want %q, %q", test.name, got, err, test.want, test.says)
		}
		if err == nil && !since.Equal(now.Add(-time.Hour)) {
			t.Errorf("%s: got since %s, want an hour ago", test.name, since)
		}
	}
}

func TestInContainer(t *testing.T) {
	if _, err := inContainer("containerd://" + strings.Repeat("0123456789abcdef", 4)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a container that is not there: got %v", err)
	}
	for _, name := range []string{"", "containerd://", "no-scheme"} {
		if p, err := inContainer(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: got %v, %v; want a complaint", name, p, err)
		}
	}
}

func TestDescribePods(t *testing.T) {
	pods := []corev1.Pod{{
		ObjectMeta: metav1.ObjectMeta{Name: "ccm-1"},
		Spec:       corev1.PodSpec{NodeName: "node-2"},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning,
			ContainerStatuses: []corev1.ContainerStatus{{
				State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
				LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 2}},
			}},
		},
	}, {
		ObjectMeta: metav1.ObjectMeta{Name: "ccm-2"},
		Status: corev1.PodStatus{
			Phase:      corev1.PodPending,
			Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "no nodes available"}},
		},
	}}
	got := describePods(pods)
	for _, want := range []string{"ccm-1", "node-2", "CrashLoopBackOff", "ended with 2", "ccm-2", "no nodes available"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}
	if got := describePods(nil); got != "there are no pods" {
		t.Errorf("got %q", got)
	}
}
