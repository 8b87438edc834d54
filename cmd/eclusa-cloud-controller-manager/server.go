package main

import (
	"fmt"
	"net/http"

	"k8s.io/apiserver/pkg/server/healthz"
	appconfig "k8s.io/cloud-provider/app/config"
	"k8s.io/component-base/configz"
	"k8s.io/component-base/metrics/prometheus/slis"
	genericapp "k8s.io/controller-manager/app"
	controllerhealthz "k8s.io/controller-manager/pkg/healthz"

	"k8s.io/cloud-provider/app"
	ccmconfigv1alpha1 "k8s.io/cloud-provider/config/v1alpha1"
)

// endpoint is a handler on the secure port, behind the delegated authentication
// and authorization.
type endpoint struct {
	prefix  string // with a slash at its end
	handler http.Handler
}

// serve answers on the secure port as the stock app does: /healthz, /metrics,
// /metrics/slis, /configz and, if allowed, /debug. It returns at once; the
// returned channel is closed when the server has stopped, which it does when
// stop is closed.
func serve(c *appconfig.CompletedConfig, stop <-chan struct{}, check healthz.HealthChecker, more ...endpoint) (*controllerhealthz.MutableHealthzHandler, <-chan struct{}, error) {
	external := &ccmconfigv1alpha1.CloudControllerManagerConfiguration{}
	if err := ccmconfigv1alpha1.Convert_config_CloudControllerManagerConfiguration_To_v1alpha1_CloudControllerManagerConfiguration(&c.ComponentConfig, external, nil); err != nil {
		return nil, nil, fmt.Errorf("converting the configuration for /configz: %w", err)
	}
	external.SetGroupVersionKind(ccmconfigv1alpha1.SchemeGroupVersion.WithKind("CloudControllerManagerConfiguration"))
	cz, err := configz.New(app.ConfigzName)
	if err != nil {
		return nil, nil, fmt.Errorf("registering /configz: %w", err)
	}
	if err := cz.Set(external); err != nil {
		return nil, nil, fmt.Errorf("setting /configz: %w", err)
	}
	health := controllerhealthz.NewMutableHealthzHandler(check)
	if c.SecureServing == nil {
		stopped := make(chan struct{})
		close(stopped)
		return health, stopped, nil
	}
	mux := genericapp.NewBaseHandler(&c.ComponentConfig.Generic.Debugging, health)
	slis.SLIMetricsWithReset{}.Install(mux)
	for _, e := range more {
		mux.HandlePrefix(e.prefix, e.handler)
	}
	handler := genericapp.BuildHandlerChain(mux, &c.Authorization, &c.Authentication)
	stopped, _, err := c.SecureServing.Serve(handler, 0, stop)
	if err != nil {
		return nil, nil, fmt.Errorf("serving on the secure port: %w", err)
	}
	return health, stopped, nil
}
