package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is where a run took place, in words.
type machine struct {
	Cores  int
	CPU    string // as it calls itself
	Memory int64  // bytes
	Kernel string
	System string
	Go     string
	Disk   string // kind of the file system that servers keep their files on
}

func (b *bench) describe() machine {
	m := machine{Cores: runtime.NumCPU(), Go: b.firstLine("go", "env", "GOVERSION"), Disk: fileSystem(b.dir)}
	m.CPU = field("/proc/cpuinfo", "model name")
	kib, _ := strconv.ParseInt(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB"), 10, 64)
	m.Memory = kib << 10
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		release, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
		m.Kernel = unix.ByteSliceToString(name.Sysname[:]) + " " + release
	}
	m.System = strings.Trim(field("/etc/os-release", "PRETTY_NAME"), `"`)
	return m
}

// String is the machine in a sentence.
func (m machine) String() string {
	return fmt.Sprintf("%s (%s) with %s of memory, %s, %s, files on %s, %s", plural(m.Cores, "core"), m.CPU, gibibytes(m.Memory), m.System, m.Kernel, m.Disk, m.Go)
}

// field is the value of the first line of a file that begins with name.
func field(path, name string) string {
	b, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
		if key, value, ok := strings.Cut(line, "="); ok && key == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// fileSystem names the kind of a directory's file system.
func fileSystem(dir string) string {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return "an unknown file system"
	}
	kinds := map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "XFS", unix.BTRFS_SUPER_MAGIC: "Btrfs", unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs"}
	if name := kinds[s.Type]; name != "" {
		return name
	}
	return fmt.Sprintf("a file system of kind %#x", s.Type)
}
