"""Tint, Chrome's and Edge's WGSL compiler: compiles kernels in a headless Chromium on its software adapter."""

import shutil
from dataclasses import dataclass

from playwright.sync_api import Error, sync_playwright

from kernels.webgpu.variants import Variant

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
# A device requested without limits has WebGPU's defaults, whatever its adapter supports.
COMPILE = """
async (kernels) => {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) return null;
  const hasSubgroups = adapter.features.has("subgroups");
  const device = await adapter.requestDevice({ requiredFeatures: hasSubgroups ? ["subgroups"] : [] });
  const problems = [], left = [];
  let pipelines = 0;
  const check = async ({ label, code, constants }) => {
    if (code.includes("enable subgroups;") && !hasSubgroups) {
      left.push(label);
      return;
    }
    const module = device.createShaderModule({ label, code });
    const { messages } = await module.getCompilationInfo();
    const errors = messages.filter(({ type }) => type === "error");
    problems.push(...errors.map(({ lineNum, message }) => `${label}:${lineNum}: ${message}`));
    if (errors.length || !constants) return;
    try {
      const compute = { module, entryPoint: "main", constants };
      await device.createComputePipelineAsync({ label, layout: "auto", compute });
      pipelines++;
    } catch (error) {
      problems.push(`${label} with ${JSON.stringify(constants)}: ${error.message}`);
    }
  };
  await Promise.all(kernels.map(check));
  return { problems, left, pipelines };
}
"""


class NoTint(Exception):
    """There is no browser, or none with WebGPU."""


@dataclass(frozen=True)
class Verdict:
    """`problems`: one line each. `left`: kernels skipped because the adapter has no subgroups."""

    problems: list[str]
    left: list[str]
    pipelines: int


def compile_all(kernels: list[Variant]) -> Verdict:
    """Compile each kernel as a module and, with its constants, as a pipeline. Raises NoTint."""
    if CHROMIUM is None:
        raise NoTint("Chromium is not installed (Debian's package: chromium)")
    texts = [
        {"label": kernel.label, "code": kernel.source(enable_subgroups=True), "constants": kernel.constants}
        for kernel in kernels
    ]
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = browser.new_page()
            # WebGPU needs a secure page. No request leaves the machine: this answers it.
            page.route("**/*", lambda route: route.fulfill(body="", content_type="text/html"))
            page.goto("https://localhost/")
            found = page.evaluate(COMPILE, texts)
            browser.close()
    except Error as error:
        raise NoTint(f"Chromium failed: {error}") from error
    if found is None:
        raise NoTint("this Chromium has no WebGPU adapter")
    return Verdict(**found)
