for (const compare of document.querySelectorAll(".compare")) {
  const slider = compare.querySelector("input");
  const cut = () => compare.style.setProperty("--cut", slider.value + "%");
  slider.addEventListener("input", cut);
  compare.classList.add("sliding");
  cut();
}
