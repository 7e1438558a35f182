"""Go's own text/template as the oracle of our interpreter: a small program, built where Go is there.

It gives a template the values that Ollama's template package gives it (ollama/ollama template/template.go @ fb30760).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PROGRAM = r"""
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type function struct {
	Name      string
	Arguments map[string]any
}
type call struct{ Function function }
type message struct {
	Role, Content, Thinking string
	Images                  []string
	ToolCalls               []call
	ToolName, ToolCallID    string
}
type job struct {
	Template string
	System   string
	Messages []*message
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<26)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var j job
		if err := json.Unmarshal(in.Bytes(), &j); err != nil {
			panic(err)
		}
		var b bytes.Buffer
		t, err := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{
			"json": func(v any) string { b, _ := json.Marshal(v); return string(b) },
		}).Parse(j.Template)
		if err == nil {
			err = t.Execute(&b, map[string]any{
				"System": j.System, "Messages": j.Messages, "Tools": []string{}, "Response": "",
				"Think": false, "ThinkLevel": "", "IsThinkSet": false,
			})
		}
		if err != nil {
			out.Encode(map[string]string{"error": err.Error()})
		} else {
			out.Encode(map[string]string{"text": b.String()})
		}
	}
}
"""


def find_go() -> str | None:
    return shutil.which("go")


def build(folder: Path) -> Path:
    """The program, built in `folder`."""
    (folder / "main.go").write_text(PROGRAM)
    (folder / "go.mod").write_text("module oracle\n\ngo 1.19\n")
    environment = {
        **os.environ,
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    subprocess.run(["go", "build", "-o", "oracle", "."], cwd=folder, env=environment, check=True, timeout=300)
    return folder / "oracle"


def ask(program: Path, jobs: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]) -> list[str | None]:
    """What Go makes of each (template, system, messages as they are given to it); None where it fails."""
    lines = [
        json.dumps(
            {
                "Template": source,
                "System": system,
                "Messages": [{"Role": role, "Content": content} for role, content in messages],
            }
        )
        for source, system, messages in jobs
    ]
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True, timeout=300
    )
    return [json.loads(line).get("text") for line in done.stdout.rstrip("\n").split("\n")]
