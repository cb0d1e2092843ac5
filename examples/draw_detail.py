"""Enlarge a real image four times: by interpolation, with the most likely detail, and with detail that is drawn, twice."""

from pathorestore import ISTE, HistoDiffusion
from pathorestore.degradations.resize import reduced, resized
from pathorestore.metrics.nuclei import nuclei_difference
from pathorestore.pipelines.contact_sheet import Cell, SheetStyle, draw_sheet
from pathorestore.pipelines.demo import demo_image

small, clean = reduced(demo_image()[..., 100:260, 150:350], 4, blur=0)
size = (clean.shape[-2], clean.shape[-1])
upscaler, model = ISTE.from_pretrained("iste-tiny"), HistoDiffusion.from_pretrained("histo-diffusion-tiny")
made = {
    "bicubic": resized(small, size),
    "iste-tiny": upscaler.upscale(small, out_size=size),
    "first stage": model.coarse(small, out_size=size),
    "drawn, seed 0": model.upscale(small, out_size=size, seed=0),
    "drawn, seed 1": model.upscale(small, out_size=size, seed=1),
    "clean": clean,
}
cells = []
for name, image in made.items():
    texture = nuclei_difference(image, clean).l1_texture.item()
    print(f"{name}: texture of nuclei off by {texture:.0f}")
    cells.append(Cell(picture=image, caption=f"texture off by {texture:.0f}" if name != "clean" else ""))
style = SheetStyle(detail_yx=(60, 70), detail_px=40, pixel_um=0.25)
draw_sheet([cells], ["x4"], list(made), style).save("drawn.generated.png")
