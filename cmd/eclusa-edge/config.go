package main

import (
	_ "embed"
	"net/netip"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

// reference is the commented reference of every key; `config reference` prints
// it and a test compares it with Config.
//
//go:embed reference.yaml
var reference string

// Config is the file that eclusa-edge is started with. reference.yaml says what
// each key means.
type Config struct {
	Name             string               `yaml:"name"`
	StateDir         string               `yaml:"stateDir"`
	API              APIConfig            `yaml:"api"`
	Management       ManagementConfig     `yaml:"management"`
	Engine           string               `yaml:"engine"`
	Announce         AnnounceConfig       `yaml:"announce"`
	ShareHostAddress bool                 `yaml:"shareHostAddress"`
	Clusters         []ClusterConfig      `yaml:"clusters"`
	Health           HealthConfig         `yaml:"health"`
	Proxy            ProxyConfig          `yaml:"proxy"`
	Nftables         NftablesConfig       `yaml:"nftables"`
	DrainTimeout     healthcheck.Duration `yaml:"drainTimeout"`

	UpgradeDrainTimeout healthcheck.Duration `yaml:"upgradeDrainTimeout"`

	Log LogConfig `yaml:"log"`
}

// APIConfig is the listener for the clusters' controllers.
type APIConfig struct {
	Listen            netip.AddrPort `yaml:"listen"`
	CertFile          string         `yaml:"certFile"`
	KeyFile           string         `yaml:"keyFile"`
	ClientCAFile      string         `yaml:"clientCAFile"`
	MaxBodyBytes      int64          `yaml:"maxBodyBytes"`
	RequestsPerSecond int            `yaml:"requestsPerSecond"`
}

// ManagementConfig is the listener for operators and their monitoring.
type ManagementConfig struct {
	Listen       netip.AddrPort `yaml:"listen"`
	TokenFile    string         `yaml:"tokenFile"`
	CertFile     string         `yaml:"certFile"`
	KeyFile      string         `yaml:"keyFile"`
	ClientCAFile string         `yaml:"clientCAFile"`
}

// AnnounceConfig says how addresses come to the machine.
type AnnounceConfig struct {
	Mode      string `yaml:"mode"`
	Interface string `yaml:"interface"`
}

// The modes of AnnounceConfig.
const (
	announceNone      = "none"
	announceInterface = "interface"
)

// ClusterConfig is what one cluster may do on this edge.
type ClusterConfig struct {
	Name             string         `yaml:"name"`
	AddressRanges    []netip.Prefix `yaml:"addressRanges"`
	NodeRanges       []netip.Prefix `yaml:"nodeRanges"`
	SharedRanges     []netip.Prefix `yaml:"sharedRanges"`
	KeyPins          []KeyPin       `yaml:"keyPins"`
	MaxLoadBalancers int            `yaml:"maxLoadBalancers"`
	MaxListeners     int            `yaml:"maxListeners"`
	MaxNodes         int            `yaml:"maxNodes"`
}

// HealthConfig limits the health checks.
type HealthConfig struct {
	ProbesPerSecond int `yaml:"probesPerSecond"`
}

// ProxyConfig tunes the engine "proxy".
type ProxyConfig struct {
	DialTimeout            healthcheck.Duration `yaml:"dialTimeout"`
	MaxConnections         int                  `yaml:"maxConnections"`
	UDPSessionsPerFrontend int                  `yaml:"udpSessionsPerFrontend"`
	UDPSessionsPerSource   int                  `yaml:"udpSessionsPerSource"`
}

// NftablesConfig tunes the engine "nftables".
type NftablesConfig struct {
	SourceNAT       bool           `yaml:"sourceNAT"`
	SourceAddresses []netip.Prefix `yaml:"sourceAddresses"`
	KeepSysctls     bool           `yaml:"keepSysctls"`
	Direct          bool           `yaml:"direct"`
}

// The engines of Config.Engine. Auto stands for the best that works.
const (
	engineProxy    = "proxy"
	engineNftables = "nftables"
	engineAuto     = "auto"
)

// LogConfig says what is logged and how.
type LogConfig struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// DefaultConfig returns the configuration of an empty file.
func DefaultConfig() Config {
	return Config{
		StateDir: "/var/lib/eclusa-edge",
		API: APIConfig{
			MaxBodyBytes:      64 << 20,
			RequestsPerSecond: 50,
		},
		Management: ManagementConfig{Listen: netip.MustParseAddrPort("127.0.0.1:9980")},
		Engine:     engineProxy,
		Announce:   AnnounceConfig{Mode: announceNone},
		Health:     HealthConfig{ProbesPerSecond: 2000},
		Nftables:   NftablesConfig{SourceNAT: true},
		Proxy: ProxyConfig{
			DialTimeout:            healthcheck.Duration(500 * time.Millisecond),
			UDPSessionsPerFrontend: 8192,
			UDPSessionsPerSource:   1024,
		},
		DrainTimeout: healthcheck.Duration(30 * time.Second),

		UpgradeDrainTimeout: healthcheck.Duration(time.Hour),

		Log: LogConfig{Level: "info", Format: "console"},
	}
}

// SetDefaults fills in what a cluster's entry leaves out.
func (c *ClusterConfig) SetDefaults() {
	c.MaxLoadBalancers = 10000
	c.MaxListeners = 50000
	c.MaxNodes = 5000
}
