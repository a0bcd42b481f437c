"""The report's page: its sections in order, and the pictures in them."""

from cifar_jax.duration import format_duration
from cifar_jax.report import network_sections as network
from cifar_jax.report import run_sections
from cifar_jax.report.data import Findings
from cifar_jax.report.figures import Picture
from cifar_jax.report.markup import page, section
from cifar_jax.report.runs import Run


def make_page(runs: list[Run], findings: Findings) -> tuple[str, list[Picture]]:
    """(the page, the pictures in it) of the first run, with a comparison where there are more."""
    run = runs[0]
    made = {
        ("goals", "Goals"): run_sections.goals_section(run, findings),
        ("compared", "Runs compared"): run_sections.compared_section(runs) if len(runs) > 1 else None,
        ("model", "Model"): run_sections.model_section(findings.summary),
        ("curves", "Curves"): run_sections.curves_section(run, findings),
        ("classes", "Accuracy of each class"): network.classes_section(run.result, findings),
        ("confusion", "Confusion"): network.confusion_section(findings),
        ("mistakes", "Most confident mistakes"): network.mistakes_section(findings),
        ("reliability", "Reliability"): network.reliability_section(findings),
        ("augmentation", "Augmented samples"): network.samples_section(run.config.augment, findings),
        ("field", "Receptive field"): network.field_section(findings.field),
        ("kernels", "First-layer kernels"): network.kernels_section(findings),
        ("maps", "Class-activation maps"): network.maps_section(findings),
        ("run", "The run"): run_sections.run_section(run),
    }
    made = {names: parts for names, parts in made.items() if parts}
    sections = [(name, title, section(name, title, *parts)) for (name, title), (parts, _) in made.items()]
    result = run.result
    lead = (
        f"{run_sections.answered(result)} of the test images right, with {result['parameters']:,} parameters after "
        f"{result['epochs']} epochs in {format_duration(result['train_seconds'])}."
    )
    footer = f"Written by run.py report. Test images were evaluated; nothing was chosen by them. Folder: {run.path}"
    title = f"Report of {run.path.resolve().name or run.path}"
    return page(title, lead, sections, footer), [picture for _, pictures in made.values() for picture in pictures]
