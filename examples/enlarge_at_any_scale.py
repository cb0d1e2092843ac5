"""Make a real image smaller by several factors, enlarge it again, and draw what bicubic interpolation and the network make of it."""

from pathorestore.degradations.resize import blur_then_resize, resized
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.contact_sheet import Cell, SheetStyle, draw_sheet
from pathorestore.pipelines.demo import demo_image
from pathorestore.pipelines.iste import load_default

SCALES = (2.0, 2.7, 4.0)
clean, upscaler, rows = demo_image()[..., 100:304, 150:450], load_default(), []
size = (clean.shape[-2], clean.shape[-1])
for scale in SCALES:
    small = blur_then_resize(clean, (round(size[0] / scale), round(size[1] / scale)))
    bicubic, enlarged = resized(small, size), upscaler.upscale(small, out_size=size)
    before, after = (psnr(one, clean).item() for one in (bicubic, enlarged))
    print(f"x{scale:g}: {tuple(small.shape[-2:])} -> {size} px, bicubic {before:.2f} dB, iste-tiny {after:.2f} dB")
    rows.append([Cell(picture=bicubic, caption=f"{before:.1f} dB"), Cell(picture=enlarged, caption=f"{after:.1f} dB"), Cell(picture=clean)])
style = SheetStyle(detail_yx=(70, 120), detail_px=40, pixel_um=0.25)
draw_sheet(rows, [f"x{scale:g}" for scale in SCALES], ["bicubic", "iste-tiny", "clean"], style).save("enlarged.png")
