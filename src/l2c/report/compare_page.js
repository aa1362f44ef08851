for (const part of document.querySelectorAll(".sliding")) {
  const stored = JSON.parse(part.querySelector("script").textContent);
  const above = part.querySelector(".above");
  const slider = part.querySelector("input");
  const cut = () => part.style.setProperty("--cut", slider.value + "%");
  slider.addEventListener("input", cut);
  part.querySelector("select").addEventListener("change", (event) => {
    const variant = stored[event.target.value];
    above.src = variant.src;
    above.alt = "The same pictures: " + variant.text;
  });
  part.querySelector(".stack").addEventListener("pointermove", (event) => {
    if (event.buttons === 0 && event.pointerType === "mouse") return;
    const box = event.currentTarget.getBoundingClientRect();
    slider.value = Math.max(0, Math.min(100, ((event.clientX - box.left) / box.width) * 100));
    cut();
  });
  cut();
}
