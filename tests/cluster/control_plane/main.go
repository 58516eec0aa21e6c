// Command control-plane is a Kubernetes control plane in one binary: etcd, the API server, the controller manager, the
// scheduler and kubectl, each a sub-command with its own flags. Tests start it on loopback, without containers: the
// chart meets the real admission, defaulting, validation and controllers of the version that go.mod names.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// Each program sees its own name and flags, as if it had been started alone.
var programs = map[string]func(){
	"etcd":       func() { etcdmain.Main(os.Args) },
	"apiserver":  func() { run(apiserver.NewAPIServerCommand()) },
	"controller": func() { run(controllers.NewControllerManagerCommand()) },
	"scheduler":  func() { run(scheduler.NewSchedulerCommand()) },
	"kubectl": func() {
		if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
		}
	},
}

func run(command *cobra.Command) { os.Exit(cli.Run(command)) }

func main() {
	if len(os.Args) > 1 {
		if program, known := programs[os.Args[1]]; known {
			os.Args = os.Args[1:]
			program()
			return
		}
	}
	fmt.Fprintln(os.Stderr, "usage: control-plane etcd|apiserver|controller|scheduler|kubectl [flags]")
	os.Exit(2)
}
