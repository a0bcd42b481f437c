"""Sections of the report on what was found of a network: its answers, what it sees, what it learnt. Each is (parts as HTML,
pictures).
"""

from cifar_jax.report import figures, thumbnails
from cifar_jax.report.data import MOST_IN_MATRIX, Answer, Maps
from cifar_jax.report.figures import MOST_BARS
from cifar_jax.report.markup import figure, gallery, paragraph, percent, side_by_side, table
from cifar_jax.scores import BINS, expected_calibration_error

MOST_ROWS = 200  # of the table of classes


def classes_section(result, findings):
    correct, images, classes = findings.class_correct, findings.class_images, findings.classes
    order = sorted(range(len(classes)), key=lambda c: (-correct[c] / images[c] if images[c] else 0, c))
    rows = [
        [classes[c], c, f"{correct[c]} of {images[c]}", percent(correct[c] / images[c]) if images[c] else "no images"]
        for c in order
    ]
    present = [c for c in order if images[c]]
    picture = figures.draw_classes(classes, correct, images, present)
    best, worst = present[0], present[-1]
    alt = (
        f"Accuracy of each class: best {classes[best]} with {percent(correct[best] / images[best])}, "
        f"worst {classes[worst]} with {percent(correct[worst] / images[worst])}"
    )
    caption = "Accuracy of each class" + (f"; the {MOST_BARS} worst of {len(classes)}." if len(present) > MOST_BARS else ".")
    caption += _numbered(classes)
    title = "Classes, the best first" + (f"; the {MOST_ROWS} worst of {len(rows)}" if len(rows) > MOST_ROWS else "")
    shown = table(title, ["class", "number", "right", "accuracy"], rows[-MOST_ROWS:], {1, 2, 3})
    note = ""
    if findings.correct != result["correct"]:
        counted = f"Counted again for this report: {findings.correct} right, not {result['correct']}"
        note = paragraph(f"{counted}; devices and kernels round differently.")
    return [note, side_by_side([figure(picture, alt, caption), shown])], [picture]


def _numbered(classes) -> str:
    return (
        "" if figures.has_letters_of(classes) else " Classes have the numbers of the table of classes: the font lacks a letter."
    )


def confusion_section(findings):
    classes, pairs = findings.classes, findings.confusions
    rows = [[classes[label], classes[predicted], count] for label, predicted, count in pairs]
    often = table("The most frequent confusions", ["true", "predicted", "images"], rows, {2}) if rows else ""
    if findings.confusion is None:
        sentence = f"The matrix is left out: {len(classes)} classes are more than the {MOST_IN_MATRIX} that can be read in one."
        return [paragraph(sentence), often], []
    picture = figures.draw_confusion(classes, findings.confusion)
    total = int(findings.confusion.sum())
    alt = f"Confusion matrix of {len(classes)} classes: {findings.correct} of {total} images on the diagonal"
    if pairs:
        label, predicted, count = pairs[0]
        alt += f"; most often {classes[label]} is taken for {classes[predicted]}, {count} times"
    caption = "Test images by true class (rows) and predicted class (columns); the darker, the larger a share of its row."
    caption += _numbered(classes)
    shown = figure(picture, alt, caption, wide=picture.width > round(figures.WIDTH * 96))
    return [side_by_side([shown, often])], [picture]


def mistakes_section(findings):
    if not findings.mistakes:
        return [paragraph("There are none: every test image is answered right.")], []
    items = []
    for number, answer in enumerate(findings.mistakes, 1):
        picture = thumbnails.picture_of(f"mistake-{number:02}", answer.image, 3)
        label, predicted = findings.classes[answer.label], findings.classes[answer.predicted]
        alt = f"Test image {answer.index}: {label}, taken for {predicted} with {percent(answer.confidence)} confidence"
        items.append((picture, alt, [f"true: {label}", f"predicted: {predicted}", f"{percent(answer.confidence)} confident"]))
    sentence = "Test images answered wrong with the highest probability. Some may be labelled wrong."
    return [paragraph(sentence), gallery(items)], [picture for picture, *_ in items]


def reliability_section(findings):
    bins = findings.reliability
    error = percent(expected_calibration_error(bins))
    total = bins.images.sum()
    confidence, accuracy = (float((bins.images * values).sum() / total) for values in (bins.confidence, bins.accuracy))
    picture = figures.draw_reliability(bins)
    sentence = (
        f"The expected calibration error is {error}, over {BINS} bins of equal width. Mean confidence is {percent(confidence)}, "
        f"accuracy {percent(accuracy)}: the network is {'over' if confidence > accuracy else 'under'}confident."
    )
    alt = f"Reliability diagram: accuracy by confidence; expected calibration error {error}"
    caption = "Where bars end at the diamonds, a probability is what it says. Below: images of each bin, on a logarithmic scale."
    return [paragraph(sentence), figure(picture, alt, caption)], [picture]


def samples_section(augment, findings):
    picture = figures.draw_samples(findings.originals, findings.samples)
    used = [f"{key} {value.p}" for key, value in augment.items() if hasattr(value, "p") and value.p > 0]
    rows, epochs = findings.samples["host"].shape[:2]
    sentence = (
        f"The first {rows} training images as the host (Albumentations) and the device (JAX) show them in {epochs} epochs. Both "
        f"draw from the same distributions, with generators of their own. This run was augmented on the {augment.backend}."
    )
    caption = f"Transforms with their probabilities: {', '.join(used) or 'none'}."
    if extra := [name for name in ("translate", "color_jitter", "cutout") if augment[name].p > 0]:
        caption += f" The host does not make {', '.join(extra)}."
    if augment.mixup.p + augment.cutmix.p > 0:
        caption += " The mixing of images with one another is not shown."
    alt = f"{rows} training images, each beside {epochs} augmented forms by the host and {epochs} by the device"
    return [paragraph(sentence), figure(picture, alt, caption)], [picture]


def field_section(field):
    picture = figures.draw_field(field)
    share = field.effective.sum() or 1.0
    centre = round(min(max(field.centre, 0), len(field.effective) - 1))
    near = field.effective[max(centre - 8, 0) : centre + 9, max(centre - 8, 0) : centre + 9].sum() / share
    sentence = (
        f"The theoretical field of the central unit of the last map is a square of {field.side} × {field.side} pixels (dashed). "
        f"The effective one is the magnitude of the input's gradient, averaged over {field.num_images} test images: "
        f"{percent(near)} of it lies within 8 pixels of the centre (the cross)."
    )
    alt = (
        f"An image with the square of the theoretical receptive field, {field.side} pixels wide, and the effective field, of "
        f"which {percent(near)} lies within 8 pixels of the centre"
    )
    caption = (
        "Left: the first test image in the square; right: the effective field on it, bright where a pixel moves the unit most."
    )
    return [paragraph(sentence), figure(picture, alt, caption)], [picture]


def kernels_section(findings):
    count, side = findings.kernels.shape[:2]
    picture = figures.draw_kernels(findings.kernels)
    name = findings.summary.layers[0].name
    alt = f"The {count} kernels of the first layer, {name}, {side} × {side} pixels of three colours each"
    caption = f"Kernels of {name} as colours: grey is 0, and all are on one scale."
    return [figure(picture, alt, caption)], [picture]


def maps_section(findings):
    sentence = (
        "Pooling and a linear output are one sum over the positions of the last map: each square shows exactly what every "
        "position adds to a class's logit, bright for the class and dark against it. A position stands at the centre of its "
        "field; between centres values are interpolated, beyond the outermost held. Beside an image lies the map of the "
        "predicted class, then, where that is wrong, the map of the true one on the same scale."
    )
    parts, pictures = [paragraph(sentence)], []
    for title, found in (("Right answers", findings.right_maps), ("Wrong answers", findings.wrong_maps)):
        items = [_map_item(findings.classes, maps, title, number) for number, maps in enumerate(found, 1)]
        pictures += [picture for picture, *_ in items]
        parts += [f"<h3>{title}</h3>", gallery(items, "strip") if items else paragraph("There are none.")]
    return parts, pictures


def _map_item(classes, maps: Maps, title: str, number: int):
    answer: Answer = maps.answer
    picture = thumbnails.picture_of_maps(f"map-{title.split()[0].lower()}-{number}", maps)
    label, predicted = classes[answer.label], classes[answer.predicted]
    lines = [f"predicted: {predicted}, logit {maps.logits[0]:.2f}, {percent(answer.confidence)} confident"]
    shown = f"the map of {predicted}"
    if answer.label != answer.predicted:
        lines.append(f"true: {label}, logit {maps.logits[1]:.2f}")
        shown += f" and that of {label}"
    alt = f"Test image {answer.index}, {label}, beside {shown}, whose logit is {maps.logits[0]:.2f}"
    return picture, alt, lines
