"""A Bazel rule that condenses a model.

Copy this file into the workspace (`cp "$(condensec cmake-dir)/condensec.bzl" tools/`) and give the rule the
command as a label: a py_console_script_binary of rules_python, or a script.

    load("//tools:condensec.bzl", "condensec_model")

    condensec_model(
        name = "small",
        model = "model.onnx",
        data = "samples.npz",
        targets = ["mobile-cpu"],
        budgets = ["latency<=0.5x"],
        condensec = "//tools:condensec",
    )

Files: `small/model.onnx`, `small/<target>/model.onnx`, `small/plan.json`, `small/report.json`,
`small/report.html`. Bazel keeps results itself, so condensec's own cache is left out.
"""

def _impl(ctx):
    folder = ctx.label.name
    report = ctx.actions.declare_file(folder + "/report.json")
    named = ["model.onnx", "plan.json", "report.html", "condensec.toml"]
    named += [target + "/model.onnx" for target in ctx.attr.targets]
    outputs = [ctx.actions.declare_file(folder + "/" + name) for name in named] + [report]

    args = ctx.actions.args()
    args.add(ctx.file.model)
    for target in ctx.attr.targets:
        args.add("--target", target)
    for budget in ctx.attr.budgets:
        args.add("--budget", budget)
    inputs = [ctx.file.model] + ctx.files.external_data
    for flag, file in (("--data", ctx.file.data), ("--val", ctx.file.val)):
        if file:
            args.add(flag, file)
            inputs.append(file)
    args.add_all(ctx.attr.options)
    args.add("--output", report.dirname)
    args.add_all(["--no-cache", "--quiet"])

    ctx.actions.run(
        executable = ctx.executable.condensec,
        arguments = [args],
        inputs = inputs,
        outputs = outputs,
        mnemonic = "Condensec",
        progress_message = "condensec %{label}",
        env = {"HOME": "."},
    )
    return [DefaultInfo(files = depset(outputs))]

condensec_model = rule(
    implementation = _impl,
    doc = "A smaller and faster ONNX model for named targets.",
    attrs = {
        "model": attr.label(allow_single_file = [".onnx"], mandatory = True),
        "external_data": attr.label_list(allow_files = True),
        "data": attr.label(allow_single_file = [".npz", ".npy"]),
        "val": attr.label(allow_single_file = [".npz", ".npy"]),
        "targets": attr.string_list(default = ["host"]),
        "budgets": attr.string_list(),
        "options": attr.string_list(doc = "Further flags, such as [\"--max-drop\", \"0.5\"]."),
        "condensec": attr.label(executable = True, cfg = "exec", mandatory = True),
    },
)
