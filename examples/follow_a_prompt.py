"""Give one model several prompts: what went in, what the right prompt makes of it, what a wrong one does, and what was wanted."""

from pathorestore import LPFM
from pathorestore.data.tasks import builtin_tasks, named
from pathorestore.functional.noise import stream
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.contact_sheet import Cell, SheetStyle, draw_sheet
from pathorestore.pipelines.demo import demo_image

sharp = demo_image()[..., 100:260, 150:350]
model = LPFM.from_pretrained("lpfm-tiny")
rows, names = [], {"denoise": "deblur", "restore_jpeg": "deblur", "stain_masson": "stain_pas"}
for number, (right, wrong) in enumerate(names.items()):
    given, wanted, _ = named(builtin_tasks(), right).tried(sharp, stream(7, number))
    made = [given, *(model(given, task=task, scale=1.0) for task in (right, wrong)), wanted]
    scores = [psnr(image, wanted).item() for image in made[:-1]]
    print(f"{right}: given {scores[0]:.2f} dB, its own prompt {scores[1]:.2f} dB, {wrong} {scores[2]:.2f} dB")
    captions = [*(f"{score:.2f} dB" for score in scores), ""]
    rows.append([Cell(picture=image, caption=caption) for image, caption in zip(made, captions, strict=True)])
style = SheetStyle(detail_yx=(60, 70), detail_px=40, pixel_um=0.25)
draw_sheet(rows, list(names), ["given", "right prompt", "wrong prompt", "wanted"], style).save("prompted.generated.png")
